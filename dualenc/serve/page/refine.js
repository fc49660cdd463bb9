// The panel beside the hits: the lowest score, labels, filters, a condition in SQL, one hit for each, and what the index is.

import { byId, bytes, count, h, later, percent, plural, score } from "./dom.js";
import { Filters } from "./filters.js";
import { searches, splitLabels } from "./state.js";

const BARS = 30;

/** changed(part of the state, kind): what was chosen; kind: changes of one kind in a row are one step back. */
export class Refine {
  #built = null; // the index the panel was made for, and its generation
  #scale = [0, 1]; // of the slider
  #key = null; // of the hits that the scale was made for

  constructor(changed) {
    this.changed = changed;
    this.filters = new Filters((column, filter) => changed((state) => ({ filters: { ...state.filters, [column]: filter } }), `filter ${column}`));
    this.#leastField();
    this.#labelField();
    this.#whereField();
    this.group = h("select", { id: "group", onchange: () => changed({ group: this.group.value || null }) });
    this.about = h("dl", { class: "index" });
    byId("panel").append(
      h("section", { id: "score-part", hidden: true }, h("h2", {}, h("label", { for: "least" }, "Lowest score"), this.leastShown), this.bars, this.least),
      h("section", {}, h("h2", {}, h("label", { for: "labels" }, "Labels")), this.labels, this.labelHint, this.tally),
      h("section", {}, h("h2", {}, "Filters"), this.filters.element, this.noFilters = h("p", { class: "hint" }, "The metadata of this index has nothing to filter by.")),
      h("section", { id: "where-part" }, h("h2", {}, h("label", { for: "where" }, "Condition in SQL")), this.where, this.whereTrouble, this.columns),
      h("section", { id: "group-part" }, h("h2", {}, h("label", { for: "group" }, "One hit for each")), this.group),
      h("section", {}, h("h2", {}, "This index"), this.about),
    );
  }

  #leastField() {
    this.leastShown = h("output", { for: "least" });
    this.bars = h("div", { class: "bars", "aria-hidden": "true" }, ...Array.from({ length: BARS }, () => h("i")));
    this.least = h("input", { id: "least", type: "range", step: 0.005, oninput: () => this.changed({ least: this.#chosen() }, "least") });
  }

  #chosen() {
    const value = Number(this.least.value);
    return value <= this.#scale[0] ? null : Number(value.toFixed(3));
  }

  #labelField() {
    const ask = later(() => this.changed({ labels: splitLabels(this.labels.value) }, "labels"), 350);
    this.labels = h("textarea", { id: "labels", rows: 2, placeholder: "dog, cat, child", spellcheck: "false", autocapitalize: "off", oninput: ask, "aria-describedby": "label-hint" });
    this.labelHint = h("p", { id: "label-hint", class: "hint" });
    this.tally = h("ul", { class: "tally", role: "list", "aria-label": "Labels of the hits shown" });
  }

  #whereField() {
    const ask = later(() => this.changed({ where: this.where.value }, "where"), 450);
    this.where = h("textarea", { id: "where", rows: 2, spellcheck: "false", autocapitalize: "off", "aria-describedby": "where-trouble", oninput: ask,
      onkeydown: (event) => event.key === "Enter" && !event.shiftKey && (event.preventDefault(), ask.cancel(), this.changed({ where: this.where.value }, "where")) });
    this.whereTrouble = h("p", { id: "where-trouble", class: "hint wrong", role: "alert", hidden: true });
    this.columns = h("p", { class: "hint" });
  }

  /** Fields for an index as GET /indexes describes it. */
  build(index) {
    const built = `${index.name}|${index.generation}`;
    this.#describe(index);
    if (this.#built === built) return;
    this.#built = built;
    this.filters.build(index.columns, index.rows);
    this.noFilters.hidden = !this.filters.element.hidden;
    const names = index.columns.map((column) => column.name);
    this.columns.textContent = names.length ? `Columns: ${names.join(", ")}` : "This index has no metadata.";
    this.where.placeholder = example(index.columns);
    for (const part of ["where-part", "group-part"]) byId(part).hidden = !index.columns.length;
    this.group.replaceChildren(h("option", { value: "" }, "(all hits)"), ...names.map((name) => h("option", { value: name }, name)));
    this.labels.disabled = !index.labels;
  }

  #describe(index) {
    const recall = index.exact ? "exact: every row is compared" : `${percent(index.recall)} of the true ${index.recall_at} nearest`;
    const encoder = { ready: "ready", loading: "still loading", none: "none: text and uploads cannot be searched for" }[index.encoder] ?? "could not be loaded";
    const facts = { Name: index.name, Items: count(index.rows), Kind: index.kind, Recall: index.recall === null && !index.exact ? "not measured" : recall,
      Size: bytes(index.bytes), Dimensions: count(index.dim), Generation: count(index.generation), Encoder: encoder };
    this.about.replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    this.noLabels = index.labels ? null : index.encoder === "none" ? "This index has no encoder to make labels with." : "This index keeps no original rows, so its hits cannot be labelled.";
  }

  /** Put a state into the fields, save the one that is being typed in. */
  show(state) {
    byId("score-part").hidden = !searches(state); // without a search, scores mean nothing
    const put = (field, value) => document.activeElement !== field && field.value !== value && (field.value = value);
    put(this.labels, splitLabels(this.labels.value).join() === state.labels.join() ? this.labels.value : state.labels.join(", "));
    put(this.where, state.where);
    if (!state.where.trim()) this.wrong(null);
    this.group.value = state.group ?? "";
    this.filters.show(state.filters);
    this.#showLeast(state.least);
    const hint = { 0: "Two or more, with commas: each hit shows the likeliest.", 1: "One more: a choice needs two." }[state.labels.length] ?? "";
    this.labelHint.textContent = this.noLabels ?? hint;
    this.labelHint.hidden = !this.labelHint.textContent;
  }

  #showLeast(least) {
    this.least.value = least ?? this.#scale[0];
    const said = least === null ? "all" : score(least);
    this.leastShown.value = said;
    this.least.setAttribute("aria-valuetext", said);
    const [low, high] = this.#scale;
    this.least.style.setProperty("--at", `${(100 * (Number(this.least.value) - low)) / (high - low)}%`);
    [...this.bars.children].forEach((bar, place) => bar.classList.toggle("out", least !== null && low + ((place + 1) * (high - low)) / BARS <= least));
  }

  /** What the hits say: the slider's scale and bars, and how often each label stands. shown: those above the lowest score. */
  results(results, shown, state) {
    if (!results.browse) this.#scores(results.hits.map((hit) => hit.score), results.key, state.least);
    this.#tally(shown);
    this.wrong(null);
  }

  #scores(scores, key, least) {
    const [top, bottom] = [scores[0] ?? 0, scores.at(-1) ?? 0];
    if (key !== this.#key || (least === null && bottom < this.#scale[0])) this.#scale = [Math.min(0, Math.floor(bottom * 20) / 20), Math.max(0.1, Math.ceil(top * 20) / 20, least ?? 0)];
    this.#key = key;
    const [low, high] = this.#scale;
    [this.least.min, this.least.max] = [low, high];
    const heights = new Array(BARS).fill(0);
    for (const value of scores) heights[Math.max(0, Math.min(BARS - 1, Math.floor(((value - low) / (high - low)) * BARS)))] += 1;
    const most = Math.max(1, ...heights);
    [...this.bars.children].forEach((bar, place) => bar.style.setProperty("--height", `${heights[place] ? Math.max(0.08, heights[place] / most) : 0}`));
    this.#showLeast(least);
  }

  #tally(shown) {
    const times = new Map();
    for (const { label } of shown) if (label !== undefined) times.set(label, (times.get(label) ?? 0) + 1);
    const most = Math.max(1, ...times.values());
    const rows = [...times].sort((one, other) => other[1] - one[1]).slice(0, 12).map(([label, n]) => {
      const row = h("li", {}, h("span", { class: "name", title: label }, label), h("span", { class: "n", title: plural(n, "hit") }, count(n)));
      row.style.setProperty("--share", `${(100 * n) / most}%`);
      return row;
    });
    this.tally.replaceChildren(...rows);
  }

  /** Say what is wrong with the condition; null: nothing. */
  wrong(text) {
    this.whereTrouble.hidden = !text;
    this.whereTrouble.textContent = text ?? "";
    this.where.setAttribute("aria-invalid", String(!!text));
  }
}

function example(columns) {
  const quoted = ({ name }) => (/^[a-z_]\w*$/i.test(name) ? name : `"${name}"`);
  const number = columns.find((column) => column.type === "number" && column.max != null);
  if (number) return `${quoted(number)} >= ${+Number(number.max).toFixed(2)}`;
  const text = columns.find(({ name }) => name === "caption") ?? columns.find((column) => column.type === "text");
  if (!text) return "";
  return text.values?.length ? `${quoted(text)} = '${text.values[0][0]}'` : `${quoted(text)} ILIKE '%dog%'`;
}
