// Elements are built node by node: what a row holds becomes text, never markup.
const SVG = "http://www.w3.org/2000/svg";

function dress(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (name === "css") for (const [key, entry] of Object.entries(value)) node.style.setProperty(key, entry);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element; attributes `on` (listeners by event) and `css` (properties) are objects. */
const el = (tag, attributes = {}, ...children) => dress(document.createElement(tag), attributes, children);

/** The same, of SVG. */
const svg = (tag, attributes = {}, ...children) => dress(document.createElementNS(SVG, tag), attributes, children);

const byId = (id) => document.getElementById(id);

/** A section with a heading, in the page's main part; `draw(body)` fills it, again whenever filters change.
 *
 * `has`: whether the files hold what it shows; null is given where they do not.
 */
function part(id, title, about, has, draw) {
  if (!has) return null;
  const body = el("div");
  const lead = about ? el("p", { class: "soft" }, about) : null;
  const section = el("section", { class: "part", id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title), lead, body);
  byId("main").append(section);
  byId("sections").append(el("a", { href: `#${id}` }, title));
  const redraw = () => {  // what has the focus keeps it, and the page its height meanwhile
    const key = body.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const open = new Set([...body.querySelectorAll("details[open]")].map((details) => details.dataset.key));
    body.style.setProperty("min-height", `${body.offsetHeight}px`);
    body.replaceChildren();
    draw(body);
    for (const details of body.querySelectorAll("details")) details.open = open.has(details.dataset.key);
    body.style.removeProperty("min-height");
    const again = key ? [...body.querySelectorAll("[data-key]")].find((node) => node.dataset.key === key) : null;
    if (again) again.focus({ preventScroll: true });
  };
  return { section, redraw };
}

let pickers = 0;

/** A labelled list of options; `act(value)` is told the choice. */
function picker(label, options, chosen, act) {
  const id = `pick-${(pickers += 1)}`;
  const list = el("select", { id, "data-key": label, on: { change: () => act(list.value) } },
    options.map(([value, words]) => el("option", { value, selected: String(value) === String(chosen) }, words)));
  return el("span", { class: "pick" }, el("label", { for: id }, label), list);
}

/** A labelled box to tick. */
function ticker(label, on, act) {
  const box = el("input", { type: "checkbox", "data-key": label, checked: on, on: { change: () => act(box.checked) } });
  return el("label", { class: "pick" }, box, label);
}

const groupBy = (items, key) => {
  const groups = new Map();
  for (const item of items) {
    const name = key(item);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(item);
  }
  return groups;
};

const most = (items, key) => items.reduce((best, item) => (best === null || key(item) > key(best) ? item : best), null);
const distinct = (items) => [...new Set(items)];
