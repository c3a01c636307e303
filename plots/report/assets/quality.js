// What each method costs in quality: means, curves, and quality against speed.
const qualityView = { metric: null, group: null, trade: 0, flipped: new Map() };
const CURVES = 5;

const quality = part("quality", "Quality", null, values.length > 0, (body) => {
  const here = values.filter((entry) => matches(entry));
  if (!here.length) {
    body.append(el("p", {}, "No metric here: the suites quality, tasks, lossless and maths have them."));
    return;
  }
  const groups = [...groupBy(here, (entry) => `${entry.run}|${entry.case}|${entry.stage}|${entry.context}`)];
  groups.sort((a, b) => b[1].length - a[1].length || a[1][0].run - b[1][0].run);
  const key = groups.some(([name]) => name === qualityView.group) ? qualityView.group : groups[0][0];
  const words = ([, [entry]]) => [page.cases[entry.case], stageOf(entry).name, runWords(entry)].filter(Boolean).join(", ");
  body.append(el("div", { class: "controls" }, picker("Case", groups.map((group) => [group[0], words(group)]), key, (value) => {
    qualityView.group = value;
    quality.redraw();
  })));
  const group = groups.find(([name]) => name === key);
  body.append(valueTable(words(group), group[1].filter((entry) => given(entry.mean))));
  drawCurves(body, words(group), group[1].filter((entry) => entry.curve));
});

/** A metric's value as tables show it; of one that no table of the suite heads, a plain number. */
function metricWords(name, value) {
  const metric = page.metrics[name];
  if (!given(value)) return "";
  if (!metric) return short(value, 4);
  return (metric.percent ? percent(value) : short(value, 4)) + metric.unit;
}

/** What is shown of a mean: perplexity of a loss. */
const shownValue = (name, value) => (given(value) && page.metrics[name] && page.metrics[name].exponent ? Math.exp(value) : value);

const METRIC_ORDER = Object.keys(page.metrics);
const metricsOf = (entries) => distinct(entries.map((entry) => entry.metric)).sort((a, b) =>
  (METRIC_ORDER.indexOf(a) + 1 || 99) - (METRIC_ORDER.indexOf(b) + 1 || 99));

const metricTitle = (name) => (page.metrics[name] ? page.metrics[name].heading : name.replaceAll("_", " "));

function valueTable(title, entries) {
  if (!entries.length) return "";
  const metrics = metricsOf(entries);
  const lines = [...groupBy(entries, (entry) => entry.variant)].map(([variant, own]) => ({
    name: page.variants[variant].name, by: new Map(own.map((entry) => [entry.metric, entry])),
    samples: Math.max(...own.map((entry) => entry.samples || 0)),
  }));
  return sortTable(`Means of ${title}`, [
    { title: "Method", of: (line) => line.name },
    ...metrics.map((metric) => ({
      title: metricTitle(metric), number: true, of: (line) => shownValue(metric, (line.by.get(metric) || {}).mean),
      cell: (line) => metricWords(metric, shownValue(metric, (line.by.get(metric) || {}).mean)),
    })),
    { title: "Samples", number: true, of: (line) => line.samples || null, cell: (line) => (line.samples ? short(line.samples) : "") },
  ], lines, { sort: null });
}

function drawCurves(body, title, entries) {
  if (!entries.length) return;
  const metrics = metricsOf(entries);
  const metric = metrics.includes(qualityView.metric) ? qualityView.metric : metrics[0];
  const over = entries.find((entry) => entry.metric === metric).over;
  body.append(el("div", { class: "bar" }, el("h3", {}, `${metricTitle(metric)} over ${over}s`),
    picker("Metric", metrics.map((name) => [name, metricTitle(name)]), metric, (value) => {
      qualityView.metric = value;
      quality.redraw();
    })));
  const curves = entries.filter((entry) => entry.metric === metric);
  const first = new Set([...groupBy(curves, (entry) => entry.method).values()].slice(0, CURVES).map((own) => own[0].variant));
  const isOn = (variant) => first.has(variant) !== Boolean(qualityView.flipped.get(variant));
  const lines = curves.map((entry) => ({ key: entry.variant, name: variantOf(entry).name, look: variantOf(entry) }));
  body.append(...switches("quality", lines, (variant) => first.has(variant), isOn, (variant) => {
    qualityView.flipped.set(variant, !qualityView.flipped.get(variant));
    quality.redraw();
  }).filter(Boolean));
  const series = curves.filter((entry) => isOn(entry.variant)).map((entry) => ({
    name: variantOf(entry).name, look: variantOf(entry),
    points: entry.curve.map(([x, value]) => {
      const y = shownValue(metric, value);
      return { x, y, lines: [variantOf(entry).name, `${over} ${short(x, 4)}: ${metricWords(metric, y)}`] };
    }),
  }));
  const width = columnsIn(body, 900).width;
  const chart = plot({
    title, width, height: 300, series, x: { label: over === "step" ? "steps" : "depth, share of the prompt", kind: "linear", form: short },
    y: { label: metricTitle(metric), kind: "linear", zero: !(page.metrics[metric] || {}).exponent, form: (value) => metricWords(metric, value) },
  });
  if (chart) body.append(chart);
}

const trades = part("trade", "Quality against speed",
  "Each point is a method and setting measured in both suites: KL to dense decoding on the real model, tokens per second of the shape named. " +
  "The steps join what nothing else beats in both. Bars: 95 % interval of the speed, standard error of the KL over stretches of steps.", page.trades.length > 0, (body) => {
    const trade = page.trades[qualityView.trade] || page.trades[0];
    body.append(el("div", { class: "controls" }, picker("Pair",
      page.trades.map((one, i) => [i, `${one.quality} (${one.case}) / ${one.where}`]), qualityView.trade, (i) => {
        qualityView.trade = Number(i);
        trades.redraw();
      })));
    const series = trade.points.map((point) => ({
      name: point.name, look: point, line: false,
      points: [{
        x: point.x, y: point.y, hollow: point.throttled, xLow: point.x_interval[0], xHigh: point.x_interval[1],
        low: given(point.y_error) ? point.y - point.y_error : null, high: given(point.y_error) ? point.y + point.y_error : null,
        lines: [point.name, `${short(point.x, 4)} tokens/s`, `KL ${short(point.y)} nats a token`, point.front ? "on the front" : "",
          point.throttled ? "measured under throttling" : ""],
      }],
    }));
    const stair = trade.points.filter((point) => point.front).map((point) => [point.x, point.y]).sort((a, b) => a[0] - b[0]);
    body.append(el("ul", { class: "legend" }, trade.points.map((point) => el("li", {}, swatch(point, false), point.name))), plot({
      title: `KL(dense || method) on ${trade.quality} against tokens/s, ${trade.where}`,
      about: [trade.about, trade.device, trade.commit].filter(Boolean).join("; "), width: columnsIn(body, 900).width, height: 340, series, stair,
      base: given(trade.level) ? { y: trade.level, words: "ReSA at f = 1: a sparse step's own error" } : null,
      x: { label: "tokens/s", kind: "linear", form: short }, y: { label: "KL, nats a token", kind: "linear", zero: true, form: short },
    }));
  });
