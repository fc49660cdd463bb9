// One item, large: its picture, its captions and all its metadata, and what is most like it.

import * as api from "./api.js";
import { byId, h, icon, iconButton, percent, score, titleOf } from "./dom.js";

const LARGE = 1024; // pixels of the longer side
const ENLARGED = 2.5;
const SIMILAR = 12;

/** on: close(), step(-1 or 1), open(hit), more(hit), less(hit), only(hit), share(id). */
export class Detail {
  #abort = new AbortController();
  #shown = null; // "index|id"

  constructor(on) {
    this.on = on;
    this.dialog = byId("detail");
    this.dialog.addEventListener("cancel", (event) => (event.preventDefault(), on.close()));
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && on.close());
    this.dialog.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Show an item; hit: what is known of it from a search, or null. neighbours: whether there are some to step to. */
  show(id, index, hit, neighbours) {
    const name = `${index}|${id}`;
    if (this.#shown === name) return;
    this.#shown = name;
    this.id = id;
    this.#abort.abort();
    this.#abort = new AbortController();
    if (hit) this.#fill(hit, index, neighbours);
    else this.#load(id, index, neighbours);
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.scrollTop = 0;
    this.dialog.querySelector(".close")?.focus({ preventScroll: true });
  }

  hide() {
    this.#shown = this.id = null;
    this.#abort.abort();
    if (this.dialog.open) this.dialog.close();
  }

  async #load(id, index, neighbours) {
    const { signal } = this.#abort;
    this.#lay(h("div", { class: "stage" }), this.#head("Loading …"), []);
    try {
      const hit = await api.item(id, index, signal);
      if (!signal.aborted) this.#fill(hit, index, neighbours);
    } catch (error) {
      if (signal.aborted) return;
      const again = h("button", { type: "button", class: "button", onclick: () => this.#load(id, index, neighbours) }, "Try again");
      this.#lay(h("div", { class: "stage" }), this.#head(error.title), [h("p", {}, error.detail), again]);
    }
  }

  #fill(hit, index, [before, after] = []) {
    const act = (name, label, call) => h("button", { type: "button", class: "button", onclick: call }, icon(name), label);
    const actions = h("div", { class: "buttons" },
      act("similar", "Search by this", () => this.on.only(hit)),
      act("plus", "More like this", () => this.on.more(hit)),
      act("minus", "Less like this", () => this.on.less(hit)),
      act("link", "Copy link", () => this.on.share(hit.id)));
    const similar = h("section", { class: "similar" }, h("h3", {}, "Similar"), h("ul", { role: "list" }, ...ghosts()));
    this.#lay(stage(hit), this.#head(titleOf(hit), before, after), [marks(hit), actions, metadata(hit), similar]);
    this.#similar(hit.id, index, similar, this.#abort.signal);
  }

  #head(title, before, after) {
    return h("header", {}, h("h2", { id: "detail-title" }, title),
      h("div", { class: "turn" },
        iconButton("left", "Previous hit (←)", () => this.on.step(-1), { hidden: !before && !after, disabled: !before }),
        iconButton("right", "Next hit (→)", () => this.on.step(1), { hidden: !before && !after, disabled: !after }),
        iconButton("close", "Close (Escape)", () => this.on.close(), { class: "plain close" })));
  }

  #lay(picture, head, rest) {
    this.dialog.replaceChildren(h("article", {}, picture, h("div", { class: "about" }, head, ...rest.filter(Boolean))));
  }

  async #similar(id, index, section, signal) {
    try {
      const { hits } = await api.similar(id, index, SIMILAR, signal);
      const row = (hit) => {
        const open = (event) => event.ctrlKey || event.metaKey || event.shiftKey || (event.preventDefault(), this.on.open(hit));
        const title = titleOf(hit);
        const image = hit.image ? Object.assign(new Image(), { alt: "", src: api.picture(hit.image, 320), decoding: "async" }) : h("span", { class: "words" }, title);
        return h("li", {}, h("a", { href: `?${new URLSearchParams({ index, item: hit.id })}`, title, "aria-label": `${title}, score ${score(hit.score)}`, onclick: open }, image, h("span", { class: "score" }, score(hit.score))));
      };
      section.lastElementChild.replaceChildren(...hits.map(row));
      if (!hits.length) section.append(h("p", { class: "hint" }, "There is nothing else here."));
    } catch (error) {
      if (!signal.aborted) section.lastElementChild.replaceWith(h("p", { class: "hint" }, error.detail || error.title || String(error)));
    }
  }

  #key(event) {
    if (event.target.matches("input, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    this.on.step(step);
  }
}

/** The picture: the thumbnail that is there already, until the large one has come. At most ENLARGED times its own size. */
function stage(hit) {
  if (!hit.image) return h("div", { class: "stage wordy" }, h("p", {}, titleOf(hit)));
  const [small, large] = [new Image(), new Image()];
  const fit = (image) => {
    for (const one of [small, large]) [one.style.maxWidth, one.style.maxHeight] = [`${ENLARGED * image.naturalWidth}px`, `${ENLARGED * image.naturalHeight}px`];
  };
  small.alt = "";
  small.onload = () => large.naturalWidth || Math.max(small.naturalWidth, small.naturalHeight) >= 320 || fit(small);
  small.src = api.picture(hit.image, 320);
  large.className = "large";
  large.alt = titleOf(hit);
  large.onload = () => (fit(large), large.classList.add("loaded"));
  large.onerror = () => large.parentElement?.classList.add("broken");
  large.src = api.picture(hit.image, devicePixelRatio > 1.25 ? 2 * LARGE : LARGE);
  return h("div", { class: "stage" }, small, large, h("p", { class: "lost" }, "The picture cannot be read from where the index says it is."));
}

const ghosts = () => Array.from({ length: SIMILAR }, () => h("li", { class: "ghost" }));

function marks(hit) {
  const parts = [hit.score !== undefined && `score ${score(hit.score)}`, hit.label !== undefined && `${hit.label} ${percent(hit.probability)}`, `item ${hit.id}`];
  return h("p", { class: "marks" }, parts.filter(Boolean).join(" · "));
}

function metadata({ metadata: columns, ...hit }) {
  const title = titleOf({ metadata: columns, ...hit });
  const rows = Object.entries(columns).filter(([name, value]) => value !== null && value !== "" && !(name === "caption" && String(value).trim() === title && title.length < 200));
  if (!rows.length) return null;
  return h("dl", { class: "metadata" }, ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, shown(value))]));
}

function shown(value) {
  if (Array.isArray(value) && value.length && value.every((part) => typeof part === "string")) return h("ul", {}, ...value.map((part) => h("li", {}, part)));
  if (typeof value === "string" && /^https?:\/\/\S+$/.test(value)) return h("a", { href: value, rel: "noopener noreferrer", target: "_blank" }, value);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

