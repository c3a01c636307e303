// Tables that sort by a click on a heading.

/**
 * columns: {title, of(item) (sorted by and shown), cell(item) (shown instead), number, wrap, look(item)}. Long words wrap.
 */
function sortTable(caption, columns, items, { sort = null, down = false, size = 60, tall = false } = {}) {
  let [by, falling, shown] = [sort, down, size];
  const head = el("tr");
  const body = el("tbody");
  const more = el("button", { type: "button", class: "more", on: { click: () => { shown += 4 * size; fill(); } } });
  const heads = columns.map((column, number) => {
    const turn = () => {
      [by, falling] = by === number ? [number, !falling] : [number, Boolean(column.number)];
      fill();
    };
    const cell = el("th", { scope: "col", class: column.number ? "number" : null },
      el("button", { type: "button", on: { click: turn } }, column.title));
    head.append(cell);
    return cell;
  });
  function ordered() {
    if (by === null) return items;
    const { of } = columns[by];
    const sign = falling ? -1 : 1;
    const empty = (value) => value === null || value === undefined || value === "";
    return [...items].sort((a, b) => {
      const [x, y] = [of(a), of(b)];
      if (empty(x) || empty(y)) return empty(x) - empty(y);  // what is missing stands last
      return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
    });
  }
  function fill() {
    heads.forEach((cell, number) =>
      cell.setAttribute("aria-sort", by !== number ? "none" : falling ? "descending" : "ascending"));
    body.replaceChildren(...ordered().slice(0, shown).map((item) => el("tr", {}, columns.map((column, number) => {
      const words = column.cell ? column.cell(item) : column.of(item);
      const long = column.wrap || String(column.of(item)).length > 56;
      const look = [column.number ? "number" : "", long ? "wrap" : "", column.look ? column.look(item) : ""].join(" ").trim();
      return number ? el("td", { class: look || null }, words) : el("th", { scope: "row", class: look || null }, words);
    }))));
    more.hidden = items.length <= shown;
    more.textContent = `Show more (${counted(items.length - shown, "row")} left)`;
  }
  fill();
  const table = el("table", {}, el("caption", {}, caption), el("thead", {}, head), body);
  const region = { class: `scroll${tall ? " tall" : ""}`, tabindex: "0", role: "region", "aria-label": caption };
  return el("div", {}, el("div", region, table), more);
}

/** A number with its interval below in small type. */
const withRange = (words, low, high, form) =>
  (given(low) && given(high) ? [words, " ", el("span", { class: "range" }, `[${form(low)}, ${form(high)}]`)] : [words]);
