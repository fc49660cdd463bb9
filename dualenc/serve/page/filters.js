// Filters made of an index's columns: values to check, ranges, and texts to look for.

import { count, h, later } from "./dom.js";
import { active } from "./state.js";

const OPEN = 3; // columns whose values are shown at once
const SHORT = 8; // values of a column before "Show all"

/** Fields for the columns that can narrow anything; changed(column, filter) is called with what is chosen. */
export class Filters {
  #fields = new Map(); // column -> show(filter)

  constructor(changed) {
    this.changed = changed;
    this.element = h("div", { class: "facets" });
  }

  /** columns: as GET /indexes gives them; rows: of the index. */
  build(columns, rows) {
    this.#fields.clear();
    const rank = (column) => (column.values ? 0 : { number: 1, time: 2 }[column.type] ?? (column.name === "caption" ? 3 : 4));
    const fields = columns.toSorted((one, other) => rank(one) - rank(other)).map((column) => this.#column(withNone(column, rows), rank(column))).filter(Boolean);
    fields.forEach((field, place) => (field.open = place < OPEN && field.rank < 4));
    this.element.replaceChildren(...fields);
    this.element.hidden = !fields.length;
  }

  show(filters) {
    for (const [column, show] of this.#fields) show(filters[column] ?? {});
  }

  #column(column, rank) {
    const make = column.values ? values : { number: range, time: dates, text: words }[column.type];
    if (!make || (column.values && column.values.length < 2) || (!column.values && column.min != null && column.min === column.max)) return null;
    if (make === range && column.min == null) return null;
    let now = {};
    const set = (part) => this.changed(column.name, { ...now, ...part });
    const { body, show } = make(column, set);
    const mark = h("span", { class: "dot", title: "in use", hidden: true });
    const field = h("details", { class: "facet" }, h("summary", {}, h("span", {}, column.name), mark), body);
    field.rank = rank;
    this.#fields.set(column.name, (filter) => {
      now = filter;
      mark.hidden = !active(filter);
      if (active(filter)) field.open = true;
      show(filter);
    });
    return field;
  }
}

/** A column whose values are listed, with null among them where the values' counts leave rows over. */
function withNone(column, rows) {
  if (!column.values || column.values.some(([value]) => value === null)) return column;
  const left = rows - column.values.reduce((sum, [, n]) => sum + n, 0);
  return left > 0 ? { ...column, values: [...column.values, [null, left]] } : column;
}

function values(column, set) {
  const boxes = new Map();
  const chosen = () => {
    const names = [...boxes].filter(([, box]) => box.checked).map(([value]) => value);
    set({ values: names.filter((value) => value !== null), none: names.includes(null) });
  };
  const most = Math.max(...column.values.map(([, n]) => n));
  const rows = column.values.map(([value, n]) => {
    const box = h("input", { type: "checkbox", onchange: chosen });
    boxes.set(value === null ? null : String(value), box);
    const shown = value === null ? "(none)" : String(value) || "(empty)";
    const row = h("label", { class: "value" }, box, h("span", { class: "name", title: shown }, shown), h("span", { class: "n" }, count(n)));
    row.style.setProperty("--share", `${Math.round((100 * n) / most)}%`);
    return row;
  });
  const list = h("div", { class: "values", role: "group", "aria-label": column.name }, ...rows);
  const body = h("div", {}, list);
  if (rows.length > SHORT + 1) {
    rows.slice(SHORT).forEach((row) => (row.hidden = true));
    const all = h("button", { type: "button", class: "quiet", onclick: () => {
      rows.forEach((row) => (row.hidden = false));
      all.remove();
      boxes.get([...boxes.keys()][SHORT]).focus();
    } }, `Show all ${rows.length}`);
    body.append(all);
  }
  const show = (filter) => {
    for (const [value, box] of boxes) {
      box.checked = value === null ? !!filter.none : !!filter.values?.includes(value);
      if (box.checked) box.closest("label").hidden = false;
    }
  };
  return { body, show };
}

function range(column, set) {
  return ends(column, set, { type: "number", step: "any", inputmode: "decimal" }, (value) => String(+Number(value).toFixed(4)));
}

function dates(column, set) {
  return ends(column, set, { type: "date" }, (value) => String(value).slice(0, 10));
}

function ends(column, set, attributes, shown) {
  const [least, most] = [column.min, column.max].map((value) => (value == null ? "" : shown(value)));
  const ask = later((end, value) => set({ [end]: value }), 300);
  const field = (end, name, placeholder) =>
    h("input", { ...attributes, placeholder, min: attributes.type === "date" ? least : null, max: attributes.type === "date" ? most : null,
      "aria-label": `${column.name} ${name}`, oninput: (event) => event.target.validity.badInput || ask(end, event.target.value) });
  const [from, to] = [field("from", "from", least), field("to", "up to", most)];
  const show = (filter) => {
    for (const [input, value] of [[from, filter.from], [to, filter.to]]) if (document.activeElement !== input) input.value = value ?? "";
  };
  return { body: h("div", { class: "range" }, from, h("span", {}, "to"), to), show };
}

function words(column, set) {
  const ask = later((value) => set({ has: value.trim() }), 250);
  const input = h("input", { type: "search", placeholder: "contains …", "aria-label": `${column.name} contains`, oninput: () => ask(input.value) });
  const show = (filter) => document.activeElement !== input && (input.value = filter.has ?? "");
  return { body: input, show };
}
