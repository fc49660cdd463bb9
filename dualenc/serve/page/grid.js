// The hits: cards that stay where they are while pictures load, reused while a search is refined, and keys to walk them.

import { itemPicture, picture } from "./api.js";
import { byId, percent, score, titleOf } from "./dom.js";

const THUMBNAIL = 320; // pixels of the longer side
const FIRST = 12; // pictures that are asked for before the others
const GHOSTS = 24;
const AHEAD = "2500px"; // below what is seen: there the next page is asked for

/** on: open(hit, card), more(hit), less(hit), leave() upwards, near the end: end(). */
export class Grid {
  #cards = new Map(); // id -> <li>
  #order = []; // <li> as they stand
  #look = "";
  #place = 0; // of the card that Tab reaches
  #reached = null; // that card

  constructor(on) {
    this.on = on;
    this.list = byId("grid");
    this.list.addEventListener("click", (event) => this.#click(event));
    this.list.addEventListener("keydown", (event) => this.#key(event));
    this.list.addEventListener("focusin", (event) => this.#reach(this.#order.indexOf(event.target.closest(".card"))));
    this.list.addEventListener("dragstart", (event) => this.#drag(event));
    for (const name of ["load", "error"]) this.list.addEventListener(name, (event) => this.#painted(event), true);
    new IntersectionObserver(([entry]) => entry.isIntersecting && this.on.end(), { rootMargin: AHEAD }).observe(byId("more"));
  }

  get length() {
    return this.#order.length;
  }

  hit(place) {
    return this.#order[place]?.hit;
  }

  /** Show these hits of an index. scores: whether they mean anything; labels: whether a label stands on each. */
  show(index, hits, { scores, labels }) {
    const look = `${index}|${scores}|${labels}`;
    if (!this.#look.startsWith(`${index}|`)) this.clear(); // the ghosts, or another index's
    const [held, before] = [this.list.contains(document.activeElement), this.#order];
    const kept = this.#cards;
    this.#cards = new Map();
    this.#order = hits.map((hit, place) => {
      const card = kept.get(hit.id) ?? this.#make(place);
      kept.delete(hit.id);
      this.#cards.set(hit.id, card);
      if (card.hit !== hit || this.#look !== look) this.#fill(card, hit, index, scores);
      return card;
    });
    this.#look = look;
    this.list.classList.toggle("labelled", labels);
    this.list.classList.toggle("unscored", !scores);
    this.list.classList.toggle("texts", hits.length > 0 && !hits.some((hit) => hit.image));
    for (const card of kept.values()) forget(card);
    this.#lay(before);
    this.#reach(Math.min(this.#place, Math.max(0, this.#order.length - 1)));
    if (held && !this.list.contains(document.activeElement)) this.focus(this.#place);
  }

  /** Places of hits that are on their way. */
  ghosts() {
    const ghost = () => {
      const card = byId("card").content.firstElementChild.cloneNode(true);
      card.className = "card ghost";
      card.setAttribute("aria-hidden", "true");
      card.querySelector(".acts").remove();
      return card;
    };
    this.list.replaceChildren(...Array.from({ length: GHOSTS }, ghost));
  }

  clear() {
    this.list.replaceChildren();
    for (const card of this.#cards.values()) forget(card);
    [this.#cards, this.#order, this.#look, this.#place] = [new Map(), [], "", 0];
  }

  /** Put the cards in their order, moving as few as can be. */
  #lay(before) {
    let same = 0;
    while (same < before.length && before[same] === this.#order[same]) same += 1;
    if (same < before.length) {
      const focused = document.activeElement;
      this.list.append(...this.#order.slice(same));
      if (this.list.contains(focused)) focused.focus({ preventScroll: true }); // moving an element takes the focus from it
    } else this.list.append(...this.#order.slice(same));
  }

  #make(place) {
    const card = byId("card").content.firstElementChild.cloneNode(true);
    const image = card.querySelector("img");
    if (place >= FIRST) image.loading = "lazy";
    else image.fetchPriority = "high";
    const part = (name) => card.querySelector(name);
    card.parts = { image, open: part(".open"), words: part(".words"), score: part(".score"), caption: part(".caption"), label: part(".label") };
    card.parts.acts = [part(".more.act"), part(".less.act")];
    return card;
  }

  #fill(card, hit, index, scores) {
    const { image, open, words, score: mark, caption, label, acts } = card.parts;
    const title = titleOf(hit);
    const named = hit.label === undefined ? "" : `, ${hit.label} ${percent(hit.probability)}`;
    card.hit = hit;
    open.setAttribute("aria-label", `${title}${scores ? `, score ${score(hit.score)}` : ""}${named}`);
    open.href = `?${new URLSearchParams({ index, item: hit.id })}`;
    acts[0].setAttribute("aria-label", `More like this: ${title}`);
    acts[1].setAttribute("aria-label", `Less like this: ${title}`);
    caption.textContent = words.textContent = title;
    caption.title = title;
    mark.textContent = scores ? score(hit.score) : "";
    if (hit.label !== undefined) this.#label(label, hit);
    if (!hit.image) card.classList.add("wordy");
    else if (!image.getAttribute("src")) {
      image.srcset = `${picture(hit.image, THUMBNAIL)} 1x, ${picture(hit.image, 2 * THUMBNAIL)} 2x`;
      image.src = picture(hit.image, THUMBNAIL);
    }
  }

  #label(label, hit) {
    label.firstElementChild.textContent = hit.label;
    label.lastElementChild.textContent = percent(hit.probability);
    label.style.setProperty("--share", `${Math.round(100 * hit.probability)}%`);
    label.classList.toggle("unsure", hit.probability < 0.5);
    label.title = `${hit.label}: ${percent(hit.probability)}`;
  }

  #painted({ type, target }) {
    if (target.tagName !== "IMG") return;
    const card = target.closest(".card");
    card.classList.toggle("loaded", type === "load");
    card.classList.toggle("broken", type === "error" && target.hasAttribute("src"));
  }

  /** Ask again for pictures that did not come. */
  mend() {
    for (const card of this.list.querySelectorAll(".broken")) {
      const { image } = card.parts;
      card.classList.remove("broken");
      image.src = image.getAttribute("src");
    }
  }

  #click(event) {
    const card = event.target.closest(".card");
    if (!card) return;
    if (event.target.closest(".more")) this.on.more(card.hit);
    else if (event.target.closest(".less")) this.on.less(card.hit);
    else if (event.target.closest(".open") && !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey)) {
      event.preventDefault();
      this.on.open(card.hit);
    }
  }

  #drag(event) {
    const card = event.target.closest(".card");
    if (!card || !event.dataTransfer) return;
    event.dataTransfer.setData("application/x-dualenc-hit", card.hit.id);
    event.dataTransfer.effectAllowed = "copyLink";
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const place = this.#order.indexOf(event.target.closest(".card"));
    const columns = getComputedStyle(this.list).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -place, End: this.length - 1 - place }[event.key];
    if (event.key === "+" || event.key === "=") this.on.more(this.hit(place));
    else if (event.key === "-") this.on.less(this.hit(place));
    else if (step === undefined) return;
    else if (event.key === "ArrowUp" && place + step < 0) this.on.leave();
    else this.focus(event.key === "ArrowDown" ? Math.min(place + step, this.length - 1) : place + step);
    event.preventDefault();
  }

  /** Move the focus to a card. */
  focus(place) {
    const card = this.#order[place];
    if (!card) return;
    card.parts.open.focus();
    card.scrollIntoView({ block: "nearest" });
    if (place > this.length - 12) this.on.end();
  }

  focusHit(id) {
    this.focus(this.#order.indexOf(this.#cards.get(id)));
  }

  /** Let Tab reach this card and no other. */
  #reach(place) {
    const card = this.#order[place];
    if (!card) return;
    this.#place = place;
    if (this.#reached === card) return;
    const tab = (of, index) => [of.parts.open, ...of.parts.acts].forEach((part) => (part.tabIndex = index));
    if (this.#reached) tab(this.#reached, -1);
    tab((this.#reached = card), 0);
  }
}

function forget(card) {
  card.parts.image.removeAttribute("srcset");
  card.parts.image.removeAttribute("src"); // ends its request
  card.remove();
}

/** A small picture of an item, for chips. */
export function thumbnail(id, index) {
  const image = new Image(32, 32);
  image.alt = "";
  image.src = itemPicture(id, index, 64);
  return image;
}

