// Keys that work anywhere on the page, and the list of all of them.

import { byId, h, iconButton } from "./dom.js";

const LIST = [
  ["/", "go to the search field"],
  ["Enter", "search at once; on a hit: open it"],
  ["Shift + Enter", "keep the text as a part of the search and write another"],
  ["↓", "from the search field to the hits"],
  ["← → ↑ ↓", "walk the hits; in an open item: the one before, the next"],
  ["Home, End", "first hit, last hit"],
  ["+  −", "more like the hit, less like it"],
  ["F", "filters, labels, scores"],
  ["Ctrl + V", "search by the picture on the clipboard"],
  ["Escape", "close what is open; in the search field: empty it"],
  ["?", "this list"],
];

/** on: search(), refine(). Letters typed into a field stay there. */
export function listen(on) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.closest("input:not([type=checkbox], [type=range]), textarea, select") || document.querySelector("dialog:modal")) return;
    const call = { "/": on.search, "?": help, f: on.refine, F: on.refine }[event.key];
    if (!call) return;
    event.preventDefault();
    call();
  });
  byId("keys").addEventListener("click", help);
}

function help() {
  const dialog = byId("help");
  const close = () => dialog.close();
  dialog.replaceChildren(
    h("header", {}, h("h2", { id: "help-title" }, "Keyboard"), iconButton("close", "Close (Escape)", close)),
    h("dl", { class: "keys" }, ...LIST.flatMap(([keys, what]) => [h("dt", {}, ...caps(keys)), h("dd", {}, what)])),
    h("p", { class: "hint" }, "A picture can also be dropped anywhere on the page, and a hit dragged to the search field."),
  );
  dialog.onclick = (event) => event.target === dialog && close();
  dialog.showModal();
}

const caps = (keys) => keys.split(/ \+ |, |\s+/).map((key) => h("kbd", {}, key));
