// One tooltip for all charts: the pointer shows the nearest thing, arrow keys go from one to the next.
const tip = byId("tip");

function showTip(lines, x, y) {
  const [title, ...rest] = lines.filter(Boolean);
  tip.replaceChildren(el("b", {}, title), ...rest.map((line) => el("div", {}, line)));
  tip.hidden = false;
  const width = document.documentElement.clientWidth;
  const left = Math.min(Math.max(4, x + 14), Math.max(4, width - tip.offsetWidth - 4));
  const above = y - tip.offsetHeight - 12;
  tip.style.setProperty("transform", `translate(${left}px, ${(above > window.scrollY ? above : y + 18).toFixed(0)}px)`);
}

function hideTip() {
  tip.hidden = true;
}

/**
 * Make a chart answer pointer and keys.
 *
 * @param chart an SVG element as large as its viewBox.
 * @param spots things to be told of, each {x, y, lines}, in reading order.
 * @param pick the number of the spot at a place, or -1; the nearest within 40 pixels where left out.
 */
function explore(chart, spots, pick = nearest(spots)) {
  if (!spots.length) return;
  const ring = svg("circle", { class: "ring", r: 8, visibility: "hidden" });
  chart.append(ring);
  chart.setAttribute("tabindex", "0");
  let current = -1;
  const leave = () => {
    current = -1;
    ring.setAttribute("visibility", "hidden");
    hideTip();
  };
  const show = (number) => {
    current = number;
    const { x, y, lines } = spots[number];
    const box = chart.getBoundingClientRect();
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    ring.setAttribute("visibility", "visible");
    showTip(lines, box.left + window.scrollX + x, box.top + window.scrollY + y);
  };
  const move = (event) => {
    const box = chart.getBoundingClientRect();
    const number = pick(event.clientX - box.left, event.clientY - box.top);
    if (number < 0) leave();
    else if (number !== current || tip.hidden) show(number);
  };
  chart.addEventListener("pointermove", move);
  chart.addEventListener("pointerdown", move);
  chart.addEventListener("pointerleave", leave);
  chart.addEventListener("blur", leave);
  chart.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -spots.length, End: spots.length };
    if (event.key === "Escape") leave();
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = current < 0 && steps[event.key] === 1 ? 0 : current + steps[event.key];
    show(Math.min(Math.max(0, next), spots.length - 1));
    byId("live").textContent = spots[current].lines.filter(Boolean).join(", ");
  });
}

function nearest(spots) {
  return (x, y) => {
    let best = -1;
    let least = 40;
    spots.forEach((spot, number) => {
      const distance = Math.hypot(spot.x - x, spot.y - y);
      if (distance < least) [best, least] = [number, distance];
    });
    return best;
  };
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});
