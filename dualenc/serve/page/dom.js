// Making elements. Text from the server only ever becomes text nodes or attributes: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element. `attributes`: onclick and the like are listeners, `class` and the rest attributes, true is "", false and null none. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows an icon alone; `title` is its name. */
export const iconButton = (name, title, onclick, more = {}) =>
  h("button", { type: "button", class: "plain", title, "aria-label": title, onclick, ...more }, icon(name));

export const count = (n) => n.toLocaleString("en");
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export function bytes(n) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let place = 0;
  while (n >= 1000 && place < units.length - 1) [n, place] = [n / 1000, place + 1];
  return `${n >= 100 || place === 0 ? Math.round(n) : n.toFixed(1)} ${units[place]}`;
}

export const percent = (share) => (share > 0.995 && share < 1 ? ">99" : Math.round(share * 100)) + " %";
export const score = (cosine) => cosine.toFixed(3).replace("-", "−");
export const weight = (value) => `${value < 0 ? "−" : ""}${+Math.abs(value).toFixed(2)}`;

/** `call`, once, when it has not been asked for again for so many milliseconds. */
export function later(call, ms) {
  let timer = 0;
  const ask = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), ms);
  };
  ask.cancel = () => clearTimeout(timer);
  return ask;
}

export const whenIdle = (call) => ("requestIdleCallback" in window ? requestIdleCallback(call) : setTimeout(call, 50));

/** What a hit is called: its caption, or else the best of its metadata. */
export function titleOf(hit) {
  const { caption, key } = hit.metadata;
  const first = Object.values(hit.metadata).find((value) => typeof value === "string" && value);
  return String(caption || key || first || `item ${hit.id}`).trim();
}
