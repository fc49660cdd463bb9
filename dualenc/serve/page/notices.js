// What is going on: one notice above the hits, short messages at the foot, and a live region for those who listen.

import { byId, h, icon, later, plural } from "./dom.js";

let counting = 0;

/** A notice in the place of, or above, the hits. actions: [[label, call]]; wait: seconds that count down to the next attempt. */
export function notice({ kind = "alert", title, detail = "", actions = [], wait = null }) {
  const box = byId("notice");
  clearInterval(counting);
  const next = h("p", { class: "next" });
  const buttons = actions.map(([label, call]) => h("button", { type: "button", class: "button", onclick: call }, label));
  box.className = `notice ${kind}`;
  box.replaceChildren(
    icon({ offline: "offline", wait: "wait", empty: "search", alert: "alert" }[kind]),
    h("div", {}, h("h2", {}, title), detail && h("p", {}, detail), wait !== null && next, buttons.length > 0 && h("div", { class: "buttons" }, ...buttons)),
  );
  if (wait !== null) countDown(next, wait);
  if (box.hidden || box.dataset.title !== title) say(`${title}. ${detail}`);
  box.dataset.title = title;
  box.hidden = false;
}

function countDown(place, wait) {
  const end = Date.now() + wait * 1000;
  const show = () => {
    const left = Math.round((end - Date.now()) / 1000);
    place.textContent = left > 0 ? `Trying again in ${plural(left, "second")}.` : "Trying again …";
  };
  show();
  counting = setInterval(show, 500);
}

export function clearNotice() {
  clearInterval(counting);
  byId("notice").hidden = true;
}

/** Tell those who listen; the last of several in a row. */
export const say = later((text) => (byId("live").textContent = text), 400);

const fade = later(() => (byId("toast").hidden = true), 4000);

/** A short message that goes by itself. */
export function toast(text) {
  const box = byId("toast");
  box.textContent = text;
  box.hidden = false;
  say(text);
  fade();
}
