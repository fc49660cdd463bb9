// The page: one state, changed by what people do and by back and forward, shown by the modules beside this one.

import { Trouble, enter } from "./api.js";
import { Chips } from "./chips.js";
import { Detail } from "./detail.js";
import { byId, h, later } from "./dom.js";
import { Grid } from "./grid.js";
import { listenToField, listenToPictures, login } from "./inputs.js";
import { listen } from "./keys.js";
import { clearNotice, toast } from "./notices.js";
import { amend, onTravel, opened, present, record } from "./past.js";
import { Refine } from "./refine.js";
import { Search, question } from "./search.js";
import { active, nothing, searches } from "./state.js";
import { complain, describe, explain, summarize } from "./summary.js";

const LESS = -0.5; // the weight of "less like this"
const ENOUGH = 1000; // hits that come by scrolling; more by a button
const WIDE = matchMedia("(min-width: 1000px)");

let { state, lost } = present();
let list = []; // GET /indexes
let scrollTo = null; // where the page stood, after back and forward
let asked = null; // the question that is answered or on its way

// --- changing the state -------------------------------------------------------------------------------------------------

/** part: what changes, or a function of the state that gives it. kind: see past.js. delay: ms before it is asked. */
function change(part, { kind = null, delay = 0, opens = false } = {}) {
  const next = { ...state, ...(typeof part === "function" ? part(state) : part) };
  if (JSON.stringify(next) === JSON.stringify(state)) return delay === 0 && asked === null && search.ask(state);
  state = next;
  record(state, kind, opens);
  show(delay);
}

function show(delay = 0) {
  if (byId("q").value.trim() !== state.q.trim()) byId("q").value = state.q;
  byId("add").disabled = !state.q.trim();
  document.title = state.q.trim() ? `${state.q.trim()} · dualenc` : "dualenc";
  byId("index").value = indexNow()?.name ?? "";
  chips.show(state, indexNow()?.images ?? true);
  const narrowing = Object.values(state.filters).filter(active).length + [state.where.trim(), state.group, state.least !== null, state.labels.length > 1].filter(Boolean).length;
  byId("active").hidden = !narrowing;
  byId("active").textContent = narrowing;
  refine.show(state);
  const now = question(state);
  if (now !== asked) {
    asked = now;
    search.ask(state, delay);
  } else if (search.current?.key === now) results(search.current);
  showItem();
}

const add = (terms) => change(({ terms: before }) => ({ terms: [...before, ...terms], item: null }));
const like = (id, weight) =>
  change(({ terms }) => {
    const rest = terms.filter((term) => !(term.kind === "id" && term.value === id));
    return { terms: [...rest, { kind: "id", value: id, weight }], item: null };
  });
const more = (hit) => (like(hit.id, 1), toast("More like it: its weight stands above the hits"));
const less = (hit) => (like(hit.id, LESS), toast("Less like it: its weight stands above the hits"));
const only = (hit) => change({ q: "", terms: [{ kind: "id", value: hit.id, weight: 1 }], item: null });
const unfilter = () => change({ filters: {}, where: "" });

function setTerm(place, weight) {
  change(({ terms }) => ({ terms: weight === null ? terms.toSpliced(place, 1) : terms.with(place, { ...terms[place], weight }) }), { kind: weight === null ? null : `weight ${place}`, delay: weight === null ? 0 : 120 });
}

function openItem(hit) {
  change({ item: hit.id }, { opens: state.item === null });
}

function closeItem() {
  if (opened()) return history.back();
  state = { ...state, item: null };
  amend(state);
  return show();
}

function showItem() {
  const place = placeOf(state.item);
  if (state.item !== null) return detail.show(state.item, state.index ?? list[0]?.name ?? null, grid.hit(place) ?? null, neighbours(place));
  if (!byId("detail").open) return;
  const id = detail.id;
  detail.hide();
  grid.focusHit(id);
}

const indexNow = () => list.find(({ name }) => name === state.index) ?? list[0];
const placeOf = (id) => (id === null ? -1 : search.current?.hits.findIndex((hit) => hit.id === id) ?? -1);
const neighbours = (place) => (place < 0 ? [] : [place > 0, place + 1 < grid.length]);

function step(by) {
  const place = placeOf(state.item);
  if (place < 0 || !grid.hit(place + by)) return;
  state = { ...state, item: grid.hit(place + by).id };
  amend(state); // stepping through items is no step of the history
  show();
  if (place + by > grid.length - 12) end();
}

async function share(id = state.item) {
  const url = new URL(location.href);
  if (id !== null) url.searchParams.set("item", id);
  const local = state.terms.some((term) => term.kind === "upload");
  await copy(url.href);
  toast(local ? "Link copied, without the picture from this device: a link cannot hold it" : "Link copied");
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "hidden" }); // http on another machine's address has no clipboard to write to
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

// --- showing what comes back --------------------------------------------------------------------------------------------

function results(found) {
  const usable = !found.browse && state.least !== null;
  const hits = usable ? found.hits.filter((hit) => hit.score >= state.least) : found.hits;
  const fresh = byId("grid").dataset.key !== found.key;
  byId("grid").dataset.key = found.key;
  byId("grid").classList.remove("stale");
  grid.show(found.index, hits, { scores: !found.browse, labels: hits.some((hit) => hit.label !== undefined) });
  if (mending) grid.mend();
  mending = false;
  refine.results(found, hits, state);
  const known = indexNow(); // what GET /indexes said last
  if (list.length && (known.name !== found.index || known.generation !== found.generation || known.rows !== found.rows || known.encoder === "loading")) refresh();
  summarize(found, hits.length, state);
  explain(found, hits.length, state, { unfilter, least: () => change({ least: null }) });
  if (fresh) window.scrollTo(0, scrollTo ?? 0);
  scrollTo = null;
  const cut = hits.length < found.hits.length || found.next === null;
  byId("more").classList.toggle("waiting", !cut && hits.length < ENOUGH);
  byId("more").firstElementChild.hidden = cut || hits.length < ENOUGH;
  if (state.item !== null) showItem();
  tellSheet(byId("said").textContent);
  if (!cut) requestAnimationFrame(() => byId("more").getBoundingClientRect().top < innerHeight + 2000 && end());
}

let mending = false;

function trouble(problem, wait) {
  byId("more").classList.remove("waiting");
  if (problem.kind === "token") return login(enter, () => (search.indexes(true).catch(() => {}), search.again()));
  mending = mending || problem.kind === "offline";
  byId("grid").classList.toggle("stale", problem.kind !== "wait");
  if (!search.current) grid.clear();
  byId("said").textContent = "\u200b";
  byId("said").dataset.took = "";
  if (problem.kind === "refused" && state.where.trim() && /\bwhere\b/i.test(problem.detail)) {
    const detail = problem.detail.replace(/^where=.*?: (?=it |column|function|there )/si, "").replace(/ \(columns: [^]*\)$/, "");
    refine.wrong(detail);
    if (WIDE.matches && document.activeElement?.id === "where") return clearNotice(); // it stands below the field that is typed in
    return complain({ ...problem, title: "The condition in SQL does not work", detail }, wait, {});
  }
  const first = problem.status === 404 && state.index && list.length && !list.some(({ name }) => name === state.index) && list[0].name;
  const last = state.terms.at(-1);
  const leaveOut = problem.kind === "refused" && last && last.kind !== "text" ? () => setTerm(state.terms.length - 1, null) : null;
  return complain(problem, wait, { again, first, leaveOut, useFirst: () => change({ index: null }) });
}

const again = () => (search.indexes(true).catch(() => {}), search.again());

function end() {
  const usable = search.current && (search.current.browse || state.least === null || (search.current.hits.at(-1)?.score ?? -1) >= state.least);
  if (usable && search.current.hits.length < ENOUGH) search.more();
}

function indexes(found) {
  list = found;
  const choice = byId("index");
  choice.replaceChildren(...found.map(({ name }) => h("option", { value: name }, name)));
  choice.hidden = found.length < 2;
  const index = indexNow();
  if (!index) return;
  choice.value = index.name;
  describe(index);
  refine.build(index);
  byId("panel").hidden = false;
  refine.show(state);
  const field = byId("q");
  field.placeholder = index.encoder === "none" ? "This index has no encoder: search by its own items" : "Describe a picture, or drop one";
  if (found.some(({ encoder }) => encoder === "loading")) refresh();
}

const refresh = later(() => search.indexes(true).catch(() => {}), 2000);
const working = later(() => byId("progress").classList.add("on"), 150); // what takes less is not worth a sign

function busy(is) {
  byId("results").setAttribute("aria-busy", String(is));
  if (is) return working();
  working.cancel();
  return byId("progress").classList.remove("on");
}

// --- the panel: beside the hits, or a sheet over them -------------------------------------------------------------------

function placePanel() {
  const sheet = byId("sheet");
  if (WIDE.matches && sheet.open) sheet.close();
  (WIDE.matches ? byId("side") : byId("sheet-body")).append(byId("panel"));
  byId("refine").setAttribute("aria-expanded", String(WIDE.matches && !document.body.classList.contains("narrowed")));
}

const tellSheet = (text) => (byId("sheet-close").textContent = `Show ${text}`);

function toggleRefine(open = null) {
  const sheet = byId("sheet");
  if (!WIDE.matches) {
    if (sheet.open) return sheet.close();
    sheet.showModal();
    return byId("sheet-close").focus();
  }
  const closed = document.body.classList.toggle("narrowed", open === null ? undefined : !open);
  byId("refine").setAttribute("aria-expanded", String(!closed));
  return undefined;
}

// --- beginning ----------------------------------------------------------------------------------------------------------

const search = new Search({ busy, results, trouble, indexes });
const grid = new Grid({ open: openItem, more, less, end, leave: () => byId("q").focus() });
const refine = new Refine((part, kind) => change(part, { kind }));
const detail = new Detail({ close: closeItem, step, open: openItem, more, less, only, share });
const chips = new Chips({
  term: setTerm,
  filter: (column) => change(({ filters: { [column]: _, ...filters } }) => ({ filters })),
  where: () => change({ where: "" }),
  group: () => change({ group: null }),
  least: () => change({ least: null }),
  all: () => change({ terms: [], filters: {}, where: "", group: null, least: null }),
  refine: () => toggleRefine(true),
});

const type = (q, delay) => (q.trim() !== state.q.trim() ? change({ q }, { kind: "text", delay }) : delay === 0 && search.ask(state));
listenToField({ text: type, add: (terms) => change((now) => ({ terms: [...now.terms, ...terms], q: "" })), down: () => grid.focus(0) });
listenToPictures({ add, drop: (id) => like(id, 1) });
listen({ search: () => (byId("q").focus(), byId("q").select()), refine: toggleRefine });
onTravel((past, place) => {
  const other = past.index !== state.index;
  [state, scrollTo] = [past, place];
  show();
  if (other) indexes(list);
});
byId("home").addEventListener("click", (event) => (event.preventDefault(), change({ ...nothing(), index: state.index }), byId("q").focus()));
byId("index").addEventListener("change", () => {
  const terms = state.terms.filter((term) => term.kind !== "id"); // another index's ids mean nothing
  change({ index: byId("index").value, terms, filters: {}, where: "", group: null, least: null, item: null });
  indexes(list);
});
byId("refine").addEventListener("click", () => toggleRefine());
byId("share").addEventListener("click", () => share());
byId("more").firstElementChild.addEventListener("click", () => search.more());
byId("sheet").addEventListener("click", ({ target }) => (target === byId("sheet") || target === byId("sheet-close")) && byId("sheet").close());
addEventListener("online", again);
addEventListener("visibilitychange", () => document.visibilityState === "visible" && list.length && refresh());
WIDE.addEventListener("change", placePanel);

placePanel();
grid.ghosts();
search.indexes().catch((error) => {
  if (!(error instanceof Trouble)) throw error;
});
show();
if (lost) toast("The picture from this device is gone after a reload: drop it again");
if (!searches(state)) byId("q").focus({ preventScroll: true });
