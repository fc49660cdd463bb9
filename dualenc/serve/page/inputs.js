// What can be searched with: the text that is typed, pictures that are chosen, pasted or dropped, hits that are dragged.

import { byId, h } from "./dom.js";
import { keep } from "./uploads.js";

const TYPING = 90; // ms without a key before a search

/** on: text(text, delay), add(terms), down(). */
export function listenToField(on) {
  const field = byId("q");
  field.addEventListener("input", () => on.text(field.value, TYPING));
  const addText = () => {
    const value = field.value.trim();
    if (!value) return field.focus();
    field.value = "";
    on.add([{ kind: "text", value, weight: 1 }]);
    return field.focus();
  };
  field.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && event.shiftKey) addText();
    else if (event.key === "ArrowDown") on.down();
    else if (event.key === "Escape" && !field.value) field.blur();
    else return;
    event.preventDefault();
  });
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    on.text(field.value, 0);
  });
  byId("add").addEventListener("click", addText);
}

/** Pictures by file chooser, paste and drop; on.add(terms), on.drop(id of a dragged hit). */
export function listenToPictures(on) {
  const add = async (files) => {
    const kept = await Promise.all(files.map(keep));
    if (kept.length) on.add(kept.map((value) => ({ kind: "upload", value, weight: 1 })));
  };
  const file = byId("file");
  file.addEventListener("change", () => {
    add([...file.files]);
    file.value = "";
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    add(files);
  });
  listenToDrops(add, on);
}

function listenToDrops(add, on) {
  const sign = byId("drop");
  const types = (event) => event.dataTransfer?.types ?? [];
  const fits = (event) => types(event).some((type) => ["Files", "application/x-dualenc-hit", "text/uri-list"].includes(type));
  let depth = 0;
  const over = (change) => (event) => {
    if (!fits(event)) return;
    depth = Math.max(0, depth + change);
    sign.hidden = depth === 0;
  };
  addEventListener("dragenter", over(1));
  addEventListener("dragleave", over(-1));
  addEventListener("dragover", (event) => {
    if (!fits(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  addEventListener("drop", (event) => {
    depth = 0;
    sign.hidden = true;
    if (!fits(event)) return;
    event.preventDefault();
    const { files } = event.dataTransfer;
    const hit = event.dataTransfer.getData("application/x-dualenc-hit");
    const url = event.dataTransfer.getData("text/uri-list").split("\n").find((line) => /^https?:/.test(line));
    if (hit) on.drop(hit);
    else if (files.length) add([...files]);
    else if (url) on.add([{ kind: "url", value: url.trim(), weight: 1 }]);
  });
}

/** Ask for the server's token; `enter` sends it, `done` goes on. Stays open until one is accepted. */
export function login(enter, done) {
  const dialog = byId("login");
  if (dialog.open) return;
  const field = h("input", { id: "token", type: "password", autocomplete: "current-password", required: true });
  const said = h("p", { class: "hint wrong", role: "alert", hidden: true });
  const form = h("form", { onsubmit: async (event) => {
    event.preventDefault();
    try {
      await enter(field.value.trim());
      dialog.close();
      done();
    } catch (error) {
      said.hidden = false;
      said.textContent = error.kind === "token" || error.kind === "refused" ? "That is not this server's token." : error.detail || error.title;
      field.select();
    }
  } }, h("input", { class: "hidden", autocomplete: "username", value: location.host, tabindex: -1, "aria-hidden": "true" }), h("label", { for: "token" }, "Token"), field, said, h("div", { class: "buttons" }, h("button", { class: "button main" }, "Go on")));
  dialog.oncancel = (event) => event.preventDefault();
  dialog.replaceChildren(h("h2", { id: "login-title" }, "This server asks for its token"), h("p", {}, "Whoever started it has the token; a cookie remembers it in this browser."), form);
  dialog.showModal();
  field.focus();
}
