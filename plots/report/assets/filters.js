// The filters, which stand in the page's address too: a view can be sent to someone.
const listeners = [];
const onFilter = (act) => listeners.push(act);

let asked = 0;
function filtersChanged() {
  keepInAddress();
  cancelAnimationFrame(asked);
  asked = requestAnimationFrame(() => {
    showFilters();
    for (const act of listeners) act();
  });
}

function keepInAddress() {
  const words = new URLSearchParams();
  for (const { name, words: say } of DIMENSIONS) for (const value of chosen[name]) words.append(name, say(value));
  if (chosen.way !== "usual") words.append("way", page.ways[chosen.way]);
  try {
    history.replaceState(null, "", `#${words}`);
  } catch {
    // a page shown where it has no address of its own
  }
}

function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  for (const { name, words: say } of DIMENSIONS) {
    const wanted = new Set(words.getAll(name));
    for (const value of valuesOf(name)) if (wanted.has(say(value))) chosen[name].add(value);
  }
  const way = page.ways.indexOf(words.get("way"));
  if (way >= 0) chosen.way = String(way);
}

const everything = [...rows, ...values, ...untimed];

function valuesOf(name) {
  const all = distinct(everything.map((record) => record[name]));
  return all.sort((a, b) => (typeof a === "number" ? a - b : a.localeCompare(b)));
}

const parts = new Map();

function showFilters() {
  const place = byId("filters");
  for (const dimension of DIMENSIONS) {
    const { name, title, words } = dimension;
    const options = valuesOf(name);
    if (options.length < 2) continue;
    if (!parts.has(name)) {
      const details = el("details", { name: "filter", "data-filter": name }, el("summary"), el("fieldset"));
      parts.set(name, details);
      place.append(details);
    }
    const details = parts.get(name);
    const set = chosen[name];
    const said = set.size === 0 ? "all" : set.size === 1 ? words([...set][0]) : `${set.size} of ${options.length}`;
    details.className = set.size ? "chosen" : "";
    details.querySelector("summary").replaceChildren(`${title}: `, el("b", {}, said));
    fillOptions(details.querySelector("fieldset"), dimension, options);
  }
  showRest(place);
}

/** A box to tick for each value, with the rows it has under the other filters. The boxes stay, so that focus does. */
function fillOptions(fieldset, { name, title, words }, options) {
  const left = groupBy(
    everything.filter((record) => matches(record, name)),
    (record) => record[name],
  );
  if (!fieldset.firstChild) {
    fieldset.append(
      el("legend", {}, `${title}: none ticked shows all`),
      ...options.map((value) =>
        el(
          "label",
          { "data-value": words(value) },
          el("input", { type: "checkbox", on: { change: (event) => tick(name, value, event.target.checked) } }),
          words(value),
          el("span", { class: "count" }),
        ),
      ),
    );
  }
  options.forEach((value, i) => {
    const label = fieldset.querySelectorAll("label")[i];
    const count = (left.get(value) || []).length;
    label.className = count ? "" : "none";
    label.querySelector("input").checked = chosen[name].has(value);
    label.querySelector(".count").textContent = count.toLocaleString("en-US");
  });
}

function tick(name, value, on) {
  if (on) chosen[name].add(value);
  else chosen[name].delete(value);
  filtersChanged();
}

function showRest(place) {
  if (!parts.has("rest")) {
    const ways = page.ways.map((words, number) => [String(number), words || "launch not given"]);
    const list = picker("Timing", [["usual", "as tables show it (graphs; kernels cold)"], ...ways], chosen.way, (value) => {
      chosen.way = value;
      filtersChanged();
    });
    const clear = el("button", { type: "button", id: "clear", on: { click: clearFilters } }, "Clear filters");
    parts.set("rest", el("output", { "aria-live": "polite" }));
    place.append(list, clear, parts.get("rest"));
  }
  const some = chosen.way !== "usual" || DIMENSIONS.some(({ name }) => chosen[name].size);
  byId("clear").hidden = !some;
  parts.get("rest").textContent =
    `${counted(chosenRows().length, "timed row")}, ` +
    counted(values.filter((entry) => matches(entry)).length, "metric value");
}

function clearFilters() {
  for (const { name } of DIMENSIONS) chosen[name].clear();
  chosen.way = "usual";
  byId("filters").querySelector("select").value = "usual";
  filtersChanged();
}

document.addEventListener("click", (event) => {
  // a click elsewhere closes an open list
  for (const details of byId("filters").querySelectorAll("details[open]")) {
    if (!details.contains(event.target)) details.open = false;
  }
});
byId("filters").addEventListener("keydown", (event) => {
  const details = event.target.closest("details[open]");
  if (event.key !== "Escape" || !details) return;
  details.open = false;
  details.querySelector("summary").focus();
});
