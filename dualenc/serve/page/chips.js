// The parts of a search as chips: terms with weights that can be changed, filters, and what else narrows the hits.

import { byId, h, icon, iconButton, score, weight } from "./dom.js";
import { thumbnail } from "./grid.js";
import { active } from "./state.js";
import { upload } from "./uploads.js";

const STEP = 0.25;
const MOST = 10; // of a weight

/** on: term(place, weight or null to remove it), filter(column), where(), group(), least(), all(), refine(). */
export class Chips {
  constructor(on) {
    this.on = on;
    this.list = byId("chips");
  }

  /** images: whether the index has pictures of its items. */
  show(state, images) {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    const chips = [...state.terms.map((term, place) => this.#term(term, place, images ? thumbnailOf(state.index) : () => icon("similar"))), ...this.#narrowing(state)];
    const local = state.terms.some((term) => term.kind === "upload");
    if (local) chips.push(h("li", { class: "aside" }, "A picture from this device is not part of the link."));
    if (chips.length > 1 + local) chips.push(h("li", {}, h("button", { type: "button", class: "quiet", onclick: () => this.on.all() }, "Clear all")));
    this.list.replaceChildren(...chips);
    this.list.hidden = !chips.length;
    if (focused) (this.list.querySelector(`[data-name="${CSS.escape(focused)}"]`) ?? byId("q")).focus({ preventScroll: true });
  }

  #term(term, place, pictured) {
    const { sign, what, mark } = described(term, pictured);
    const set = (value) => this.on.term(place, Math.max(-MOST, Math.min(MOST, Math.round(value * 100) / 100)));
    const input = h("input", {
      type: "number", step: STEP, min: -MOST, max: MOST, value: term.weight, "aria-label": `Weight of ${what}`, "data-name": `weight ${place}`,
      onchange: () => Number.isFinite(input.valueAsNumber) ? set(input.valueAsNumber) : (input.value = term.weight),
      onfocus: () => input.select(),
    });
    return h("li", { class: `chip term ${term.weight < 0 ? "minus" : "plus"}` },
      mark,
      h("span", { class: "what", title: what }, h("span", { class: "sign" }, `${sign} `), term.kind === "text" ? `“${term.value}”` : what),
      h("span", { class: "weight" },
        iconButton("minus", `Less weight (now ${weight(term.weight)})`, () => set(term.weight - STEP), { "data-name": `less ${place}` }),
        input,
        iconButton("plus", `More weight (now ${weight(term.weight)})`, () => set(term.weight + STEP), { "data-name": `more ${place}` })),
      iconButton("close", `Remove ${what}`, () => this.on.term(place, null), { "data-name": `remove ${place}` }));
  }

  #narrowing(state) {
    const filters = Object.entries(state.filters).filter(([, filter]) => active(filter));
    const chips = filters.map(([column, filter]) => this.#filter(inWords(column, filter), () => this.on.filter(column)));
    if (state.where.trim()) chips.push(this.#filter(state.where.trim(), () => this.on.where(), "code"));
    if (state.group) chips.push(this.#filter(`one for each ${state.group}`, () => this.on.group()));
    if (state.least !== null) chips.push(this.#filter(`score at least ${score(state.least)}`, () => this.on.least()));
    return chips;
  }

  #filter(text, remove, more = "") {
    return h("li", { class: `chip ${more}` },
      h("button", { type: "button", class: "what", title: `${text} (change it)`, onclick: () => this.on.refine() }, text),
      iconButton("close", `Remove: ${text}`, remove, { "data-name": `remove ${text}` }));
  }
}

const thumbnailOf = (index) => (id) => thumbnail(id, index);

/** What a term is: {sign, what, mark}; mark is its picture or icon. */
function described({ kind, value, weight: size }, pictured) {
  const sign = size < 0 ? "less like" : "more like";
  if (kind === "id") return { sign, what: `item ${value}`, mark: pictured(value) };
  if (kind === "upload") return { sign, what: upload(value)?.name ?? "picture", mark: copied(upload(value)?.preview) ?? icon("image") };
  if (kind === "url") return { sign, what: value.replace(/^https?:\/\//, ""), mark: icon("image") };
  return { sign: size < 0 ? "without" : "and", what: value, mark: null };
}

function copied(canvas) {
  if (!canvas) return null;
  const copy = h("canvas", { width: canvas.width, height: canvas.height, "aria-hidden": "true" });
  copy.getContext("2d").drawImage(canvas, 0, 0);
  return copy;
}

function inWords(column, { values = [], none, from, to, has }) {
  const parts = [];
  const some = [...values.map((value) => (value === "" ? "“”" : value)), ...(none ? ["nothing"] : [])];
  if (some.length) parts.push(`is ${some.slice(0, 3).join(" or ")}${some.length > 3 ? ` or ${some.length - 3} more` : ""}`);
  if (has) parts.push(`contains “${has}”`);
  if (from && to) parts.push(`${from} to ${to}`);
  else if (from) parts.push(`from ${from}`);
  else if (to) parts.push(`up to ${to}`);
  return `${column} ${parts.join(", ")}`;
}
