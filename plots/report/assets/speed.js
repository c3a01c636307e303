// Speed over context: a group of panels a suite, a panel a setting and batch.
const QUANTITIES = [
  {
    key: "ratio",
    title: "speed-up over the best dense",
    kind: "log",
    form: ratio,
    tick: shortRatio,
    base: { y: 1, words: "best dense" },
    of: (row) => [row.ratio, row.least, row.most],
    limit: (row) => row.allows,
  },
  {
    key: "time",
    title: "time of a step",
    kind: "log",
    form: time,
    tick: shortTime,
    of: (row) => [row.time, row.low, row.high],
    limit: (row) => row.floor,
  },
  {
    key: "rate",
    title: "tokens/s",
    kind: "linear",
    zero: true,
    form: short,
    of: rates,
    limit: (row) => (given(row.rate) && row.floor ? (row.batch * 1e6) / row.floor : null),
  },
  {
    key: "share",
    title: "share of the floor reached",
    kind: "linear",
    zero: true,
    form: (v) => percent(v, 0),
    base: { y: 1, words: "measured ceiling" },
    of: (row) => [row.share, null, null],
  },
  {
    key: "joules",
    title: "joules a token",
    kind: "linear",
    zero: true,
    form: short,
    of: (row) => [row.joules, null, null],
  },
  {
    key: "memory",
    title: "peak memory",
    kind: "linear",
    zero: true,
    form: gigabytes,
    tick: (v) => `${short(v / 2 ** 30)} GiB`,
    of: (row) => [row.memory, null, null],
  },
];
const LINES = 5;
const BEST_DENSE = "dense";
const FIRST_PANELS = 6;
const speedView = { quantity: {}, alone: false, floors: true, flipped: new Map(), all: new Set() };

function rates(row) {
  if (!given(row.rate)) return [null, null, null];
  const per = row.rate * row.time; // the row's own tokens a step
  return [row.rate, row.high ? per / row.high : null, row.low ? per / row.low : null];
}

const speed = part(
  "speed",
  "Speed over context",
  "Bars show 95 % intervals, hollow markers steps measured under throttling. " +
    "Long dashes: what the floor of bytes and FLOPs allows.",
  rows.some((row) => row.whole),
  (body) => {
    const able = chosenRows().filter((row) => row.whole);
    const steps = able.filter((row) => (speedView.alone ? stageOf(row).name === "total" : row.whole === 2));
    if (!steps.length) {
      body.append(el("p", {}, "No whole step here. Choose other filters."));
      return;
    }
    body.append(
      el(
        "div",
        { class: "controls" },
        ticker("the step alone, without rectification", speedView.alone, (on) => {
          speedView.alone = on;
          speed.redraw();
        }),
        ticker("floors", speedView.floors, (on) => {
          speedView.floors = on;
          speed.redraw();
        }),
      ),
    );
    const suites = [...groupBy(steps, (row) => row.suite)];
    suites.sort(([a], [b]) => (page.suites[b] === "decode") - (page.suites[a] === "decode"));
    for (const [suite, group] of suites) speedOf(body, suite, group);
  },
);

function speedOf(body, suite, steps) {
  const able = QUANTITIES.filter((quantity) => steps.some((row) => given(quantity.of(row)[0])));
  if (!able.length) return;
  const quantity = able.find(({ key }) => key === speedView.quantity[suite]) || able[0];
  const choose = (key) => {
    speedView.quantity[suite] = key;
    speed.redraw();
  };
  body.append(
    el(
      "div",
      { class: "bar" },
      el("h3", {}, suiteTitle(suite)),
      picker(
        "Shown",
        able.map(({ key, title }) => [key, title]),
        quantity.key,
        choose,
      ),
    ),
  );
  const shown = usualLines(suite, steps, quantity);
  const isOn = (key) =>
    shown.has(key) !== Boolean(speedView.flipped.get(`${suite}|${quantity.key === "ratio"}|${key}`));
  const flip = (key) => {
    const name = `${suite}|${quantity.key === "ratio"}|${key}`;
    speedView.flipped.set(name, !speedView.flipped.get(name));
    speed.redraw();
  };
  const variants = distinct(steps.map((row) => row.variant)).sort((a, b) => a - b);
  const entries = variants.map((key) => ({ key, name: page.variants[key].name, look: page.variants[key] }));
  if (quantity.key !== "ratio") entries.unshift({ key: BEST_DENSE, name: "best dense", look: BEST_LOOK });
  entries.sort((a, b) => Boolean(a.look.dense) - Boolean(b.look.dense));
  body.append(...switches(suiteTitle(suite), entries, (key) => shown.has(key), isOn, flip).filter(Boolean));
  const panels = [...groupBy(steps, (row) => `${row.run}|${row.setting}|${row.batch}`).values()];
  const contexts = (panel) => distinct(panel.map((row) => row.context)).length;
  panels.sort((a, b) => contexts(b) - contexts(a));
  const { width } = columnsIn(body);
  const figures = panels
    .map((panel) => [panel, speedPanel(panel, quantity, isOn, width)])
    .filter(([, figure]) => figure);
  const all = speedView.all.has(suite) || figures.length <= FIRST_PANELS + 1;
  body.append(
    gridOf(
      body,
      figures.slice(0, all ? figures.length : FIRST_PANELS).map(([, figure]) => figure),
    ),
  );
  if (!all) {
    const open = () => {
      speedView.all.add(suite);
      speed.redraw();
    };
    body.append(
      el(
        "button",
        { type: "button", class: "more", on: { click: open } },
        `Show all ${figures.length} charts of this suite`,
      ),
    );
  }
}

const BEST_LOOK = { colour: "#000000", dark: "#F5F5F5", marker: "o", dashes: [] };

/** The lines shown first: the best dense, and of each sparse method its most frequent variant, ReSA's forms first. */
function usualLines(suite, steps, quantity) {
  const sparse = steps.filter((row) => !variantOf(row).dense && given(quantity.of(row)[0]));
  const methods = [...groupBy(sparse, (row) => row.method).values()].map((own) => {
    const variants = [...groupBy(own, (row) => row.variant)];
    return most(variants, ([, group]) => group.length);
  });
  const isResa = ([variant]) => Number(page.variants[variant].resa);
  methods.sort((a, b) => isResa(b) - isResa(a) || b[1].length - a[1].length || a[0] - b[0]);
  const kept = methods.slice(0, quantity.key === "ratio" ? LINES : LINES - 1).map(([variant]) => variant);
  return new Set([BEST_DENSE, ...kept]);
}

function speedPanel(panel, quantity, isOn, width) {
  const series = [];
  const limits = new Map();
  if (quantity.key !== "ratio" && isOn(BEST_DENSE)) {
    const dense = panel.filter((row) => variantOf(row).dense && given(quantity.of(row)[0]));
    const best = [...groupBy(dense, (row) => row.context).values()].map((at) => most(at, (row) => -row.time));
    series.push(lineOf("best dense", BEST_LOOK, best, quantity));
  }
  for (const [key, group] of groupBy(panel, (row) => row.variant)) {
    if (!isOn(key)) continue;
    const look = page.variants[key];
    for (const [way, own] of groupBy(
      group.filter((row) => given(quantity.of(row)[0])),
      (row) => row.way,
    )) {
      const several = distinct(panel.map((row) => row.way)).length > 1;
      series.push(lineOf(look.name + (several ? ` (${page.ways[way]})` : ""), look, own, quantity));
    }
    if (!speedView.floors || !quantity.limit || look.dense) continue;
    const points = group.filter((row) => given(quantity.limit(row))).map((row) => [row.context, quantity.limit(row)]);
    points.sort((a, b) => a[0] - b[0]);
    if (points.length > 1) limits.set(JSON.stringify(points), { look, points }); // equal floors: one line
  }
  const { model, words } = page.settings[panel[0].setting];
  const about = [words, runWords(panel[0])].filter(Boolean).join("; ");
  const drawn = series.filter((one) => one.points.length);
  const title = `${model}, batch ${panel[0].batch}`;
  const y = {
    label: quantity.title,
    kind: quantity.kind,
    form: quantity.form,
    tick: quantity.tick,
    zero: quantity.zero,
  };
  const contexts = distinct(drawn.flatMap((one) => one.points.map((point) => point.x)));
  if (contexts.length === 1) {
    return lanes({
      title: `${title}, ${tokens(contexts[0])} tokens`,
      about,
      width,
      y,
      series: drawn,
      base: quantity.base,
    });
  }
  const x = { label: "context, tokens", kind: "steps", form: tokens };
  return plot({ title, about, width, series: drawn, limits: [...limits.values()], base: quantity.base, x, y });
}

function lineOf(name, look, group, quantity) {
  const points = group.map((row) => {
    const [y, low, high] = quantity.of(row);
    const spread = range(low, high, quantity.form);
    return {
      x: row.context,
      y,
      low,
      high,
      hollow: row.throttled === 1,
      lines: [
        name === "best dense" ? `best dense: ${variantOf(row).name}` : name,
        `${tokens(row.context)}: ${quantity.form(y)}${spread ? ` [${spread}]` : ""}`,
        quantity.key === "time" ? "" : `a step: ${time(row.time)}`,
        given(row.ratio) && quantity.key !== "ratio" && name !== "best dense"
          ? `${ratio(row.ratio)} over the best dense`
          : "",
        quantity.key === "ratio" && given(row.rival) ? `over ${page.variants[row.rival].name}` : "",
        given(row.allows) && !look.dense && name !== "best dense" ? `both at their floors ${ratio(row.allows)}` : "",
        row.throttled ? "measured under throttling" : "",
        row.others ? "others used the machine" : "",
      ],
    };
  });
  points.sort((a, b) => a.x - b.x);
  return { name, look, points };
}
