// What the page shows, and how that stands in the URL. A picture from this device cannot stand in a URL: such a term is
// kept for the session's own back and forward (`uploads.js` holds it), and a link leaves it out.

const TERM = /^(-?\d*\.?\d+)\*(id|text|url):([^]*)$/;
const FILTERS = { is: "values", null: "none", from: "from", to: "to", has: "has" };

export const nothing = () => ({
  index: null, // a name; null: the server's first
  q: "", // the search field
  terms: [], // {kind: "id" | "text" | "url" | "upload", value (an id as text), weight}, added to it
  filters: {}, // column -> {values: [text], none: bool, from: text, to: text, has: text}
  where: "", // the SQL that was typed
  group: null, // a column of which each value is shown once
  least: null, // the lowest score that is shown
  labels: [], // zero-shot labels
  item: null, // the id that is open, as text
});

/** The state that a URL's query stands for. What it does not understand it leaves out. */
export function read(query) {
  const given = new URLSearchParams(query);
  const state = nothing();
  state.index = given.get("index");
  state.q = given.get("q") ?? "";
  state.terms = given.getAll("term").map(readTerm).filter(Boolean);
  state.where = given.get("where") ?? "";
  state.group = given.get("group") || null;
  state.least = number(given.get("least"));
  state.labels = splitLabels(given.get("labels") ?? "");
  state.item = /^\d+$/.test(given.get("item") ?? "") ? given.get("item") : null;
  for (const [name, value] of given) readFilter(state.filters, name, value);
  return state;
}

function readTerm(text) {
  const [, weight, kind, value] = TERM.exec(text) ?? [];
  if (!kind || !value || (kind === "id" && !/^\d+$/.test(value))) return null;
  return { kind, value, weight: Number(weight) };
}

function readFilter(filters, name, value) {
  const dot = name.indexOf(".");
  const kind = FILTERS[name.slice(0, dot)];
  if (dot < 0 || !kind) return;
  const filter = (filters[name.slice(dot + 1)] ??= {});
  if (kind === "values") (filter.values ??= []).push(value);
  else filter[kind] = kind === "none" ? true : value;
}

const number = (text) => (text !== null && text !== "" && Number.isFinite(Number(text)) ? Number(text) : null);

/** The query of a URL for a state; "" where nothing is asked. */
export function write(state) {
  const out = new URLSearchParams();
  if (state.index) out.set("index", state.index);
  if (state.q.trim()) out.set("q", state.q.trim());
  for (const { kind, value, weight } of state.terms) if (kind !== "upload") out.append("term", `${weight}*${kind}:${value}`);
  for (const [column, filter] of Object.entries(state.filters)) {
    for (const value of filter.values ?? []) out.append(`is.${column}`, value);
    if (filter.none) out.append(`null.${column}`, "1");
    for (const end of ["from", "to", "has"]) if (filter[end]) out.append(`${end}.${column}`, filter[end]);
  }
  if (state.where.trim()) out.set("where", state.where.trim());
  if (state.group) out.set("group", state.group);
  if (state.least !== null) out.set("least", String(state.least));
  if (state.labels.length) out.set("labels", state.labels.join(","));
  if (state.item !== null) out.set("item", state.item);
  return out.size ? `?${out}` : "";
}

/** Labels as typed, with commas or line ends between, each once. */
export const splitLabels = (text) => [...new Set(text.split(/[,\n]/).map((label) => label.trim()).filter(Boolean))].slice(0, 200);

export const searches = (state) => state.q.trim() !== "" || state.terms.length > 0;
export const filtered = (state) => state.where.trim() !== "" || Object.values(state.filters).some(active);
export const active = (filter) => !!(filter.values?.length || filter.none || filter.from || filter.to || filter.has);
