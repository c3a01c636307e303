// Markers, dashes and hatches: the same shapes as in the figures.
function corners(count, radius, turn = 0, inner = null) {
  const all = inner === null ? count : 2 * count;
  const points = Array.from({ length: all }, (_, i) => {
    const angle = turn - Math.PI / 2 + (2 * Math.PI * i) / all;
    const reach = inner !== null && i % 2 ? inner : radius;
    return `${(reach * Math.cos(angle)).toFixed(2)} ${(reach * Math.sin(angle)).toFixed(2)}`;
  });
  return `M${points.join("L")}Z`;
}

function plus(size, turned) {
  const arm = size * 0.38;
  const outline = [[-arm, -size], [arm, -size], [arm, -arm], [size, -arm], [size, arm], [arm, arm], [arm, size],
    [-arm, size], [-arm, arm], [-size, arm], [-size, -arm], [-arm, -arm]];
  const turn = turned ? Math.SQRT1_2 : 0;
  const at = ([x, y]) => (turned ? [(x - y) * turn, (x + y) * turn] : [x, y]).map((v) => v.toFixed(2)).join(" ");
  return `M${outline.map(at).join("L")}Z`;
}

const SHAPES = {
  o: (r) => `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`,
  s: (r) => corners(4, r * 1.3, Math.PI / 4),
  D: (r) => corners(4, r * 1.3),
  d: (r) => `M0 ${-r * 1.4}L${r * 0.85} 0L0 ${r * 1.4}L${-r * 0.85} 0Z`,
  "^": (r) => corners(3, r * 1.3),
  v: (r) => corners(3, r * 1.3, Math.PI),
  "<": (r) => corners(3, r * 1.3, -Math.PI / 2),
  ">": (r) => corners(3, r * 1.3, Math.PI / 2),
  p: (r) => corners(5, r * 1.2),
  h: (r) => corners(6, r * 1.2),
  "*": (r) => corners(5, r * 1.5, 0, r * 0.65),
  P: (r) => plus(r * 1.15, false),
  X: (r) => plus(r * 1.15, true),
};

const colours = (look) => ({ "--colour": look.colour, "--dark": look.dark });

/** A marker at a place; hollow where it was measured under throttling. */
function marker(look, x, y, { hollow = false, radius = 4 } = {}) {
  const shape = SHAPES[look.marker] || SHAPES.o;
  return svg("path", {
    class: `own dot${hollow ? " hollow" : ""}`, css: colours(look), d: shape(radius),
    transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`,
  });
}

const dashes = (look) => (look.dashes.length ? look.dashes.map((length) => length * 2).join(" ") : null);

/** A line with its marker, as legends show it. */
function swatch(look, line = true) {
  const stroke = line ? svg("path", {
    class: "own path", css: colours(look), d: "M0 7H28", "stroke-dasharray": dashes(look),
  }) : null;
  return svg("svg", { width: 28, height: 14, "aria-hidden": "true" }, stroke, marker(look, 14, 7));
}

let hatches = 0;

/** The fill of a stage: a colour, or where several are one a pattern, which goes into `defs`. */
function stageFill(stage, defs) {
  if (!stage.hatch) return stage.fill;
  const id = `hatch-${(hatches += 1)}`;
  defs.append(svg("pattern", { id, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("rect", { width: 6, height: 6, fill: stage.fill }), svg("rect", { width: 2, height: 6, fill: stage.hatch })));
  return `url(#${id})`;
}

/** Stages as a legend. */
function stageLegend(stages) {
  return el("ul", { class: "legend" }, stages.map((stage) => {
    const defs = svg("defs");
    const box = svg("rect", { width: 14, height: 14, fill: stageFill(stage, defs), class: "edge-box" });
    return el("li", {}, svg("svg", { width: 14, height: 14, "aria-hidden": "true" }, defs, box), stage.shown);
  }));
}
