// What was measured, where and at which commit; and the headline.
function about() {
  const place = byId("about");
  const single = page.runs.length === 1;
  place.append(
    el(
      "dl",
      { class: "facts" },
      page.runs.map((run) => {
        const device = run.device.join("; ") || "device not given";
        const commit = `commit ${run.commits.join(", ") || "not given"}`;
        const when = run.dates.join(" to ") || "no date";
        return single
          ? [fact("Device", device), fact("Commit", commit.slice(7)), fact("Measured", when)]
          : fact(run.label, `${device}; ${commit}; ${when}`);
      }),
    ),
    el(
      "details",
      { class: "more" },
      el("summary", {}, `Versions, files and commands of ${counted(page.runs.length, "run")}`),
      page.runs.map(runFacts),
    ),
  );
  byId("foot").append(
    `Written ${page.made} from ${counted(
      page.runs.reduce((sum, run) => sum + run.rows, 0),
      "row",
    )}. `,
    "A ratio is the row's own: the best dense method of the same case and run over this method.",
  );
}

const fact = (name, words) => [el("dt", {}, name), el("dd", {}, words)];

function runFacts(run) {
  const versions = ["torch", "triton", "python", "driver", "version"].filter((name) => run[name].length);
  const named = { torch: "torch", triton: "Triton", python: "Python", driver: "driver", version: "resa-bench" };
  const more = run.more_commands ? [`... and ${run.more_commands} more`] : [];
  return el(
    "div",
    {},
    el("h2", { class: "minor" }, run.label),
    el(
      "dl",
      { class: "facts" },
      fact("Device", run.device.join("; ") || "not given"),
      fact("Commit", run.commits.join(", ") || "not given"),
      fact("Versions", versions.map((name) => `${named[name]} ${run[name].join(", ")}`).join("; ") || "not given"),
      fact("Files", `${run.files.join(", ")} (${counted(run.rows, "row")})`),
      run.others.length ? fact("Others ran", run.others.join("; ")) : [],
    ),
    run.commands.length ? el("pre", {}, [...run.commands, ...more].join("\n")) : null,
  );
}

const headView = { all: false };

const headline = part(
  "headline",
  "Headline",
  null,
  rows.some((row) => given(row.ratio)),
  (body) => {
    const able = chosenRows().filter((row) => row.whole === 2 && given(row.ratio) && !variantOf(row).dense);
    if (!able.length) {
      body.append(
        el("p", {}, "No whole step of a sparse method has a speed-up over a dense one here. Choose other filters."),
      );
      return;
    }
    const hasResa = able.some((row) => variantOf(row).resa);
    body.append(
      el(
        "p",
        { class: "soft" },
        `The largest speed-up of a whole step${hasResa && !headView.all ? " of ReSA" : ""}, rectification included, ` +
          "over the best dense method of the same case and run. " +
          "Beside it: the range that the 95 % intervals of both times leave.",
      ),
    );
    if (hasResa && !able.every((row) => variantOf(row).resa)) {
      body.append(
        el(
          "div",
          { class: "controls" },
          ticker("any sparse method, not ReSA alone", headView.all, (on) => {
            headView.all = on;
            headline.redraw();
          }),
        ),
      );
    }
    const groups = [...groupBy(able, (row) => `${row.suite}|${row.run}|${row.model}`).values()].map((group) => {
      const resa = group.filter((row) => variantOf(row).resa);
      return resa.length && !headView.all ? resa : group;
    });
    const order = (group) =>
      (page.suites[group[0].suite] === "decode" ? 1e6 : 0) + Math.max(...group.map((row) => row.context));
    groups.sort((a, b) => order(b) - order(a));
    body.append(
      el(
        "div",
        { class: "cards" },
        groups.slice(0, 4).map((group) => card(most(group, (row) => row.ratio))),
      ),
    );
    const best = groups.flatMap((group) =>
      [...groupBy(group, (row) => row.context).values()]
        .map((at) => most(at, (row) => row.ratio))
        .sort((a, b) => a.context - b.context),
    );
    body.append(sortTable("Best speed-up per context", headlineColumns(best), best, { sort: null, size: 16 }));
  },
);

function card(row) {
  const dense = given(row.rival) ? page.variants[row.rival].name : "the best dense method";
  const spread = range(row.least, row.most, ratio);
  return el(
    "div",
    { class: "card" },
    el("div", { class: "soft" }, [suiteTitle(row.suite), runWords(row)].filter(Boolean).join(", ")),
    el("div", { class: "big" }, ratio(row.ratio), spread ? el("small", {}, ` ${spread}`) : null),
    el("p", {}, `${variantOf(row).name} at ${tokens(row.context)} over ${dense}`, noted(row)),
    el("p", { class: "soft" }, circumstances(row), given(row.allows) ? `; both at their floors ${ratio(row.allows)}` : ""),
  );
}

/** Throttling and other users, said where a row has them. */
function noted(row) {
  const words = [row.throttled ? "throttled" : "", row.others ? "others ran" : ""].filter(Boolean);
  return words.length ? el("span", { class: "throttled" }, ` (${words.join(", ")})`) : "";
}

function headlineColumns(items) {
  const several = (key) => distinct(items.map(key)).length > 1;
  return [
    { title: "Context", of: (row) => row.context, cell: (row) => tokens(row.context), number: true },
    {
      title: "Speed-up",
      of: (row) => row.ratio,
      cell: (row) => withRange(ratio(row.ratio), row.least, row.most, ratio),
      number: true,
      look: () => "best",
    },
    { title: "Method", of: (row) => variantOf(row).name, cell: (row) => [variantOf(row).name, noted(row)] },
    { title: "Best dense", of: (row) => (given(row.rival) ? page.variants[row.rival].name : "") },
    { title: "Floor allows", of: (row) => row.allows, cell: (row) => ratio(row.allows), number: true },
    { title: "A step", of: (row) => row.time, cell: (row) => time(row.time), number: true },
    several((row) => row.suite) ? { title: "Suite", of: (row) => page.suites[row.suite] } : null,
    {
      title: "Model and setting",
      of: (row) => {
        const s = page.settings[row.setting];
        return `${s.model}, batch ${row.batch}, ${s.words}`;
      },
      wrap: true,
    },
    page.runs.length > 1 ? { title: "Run", of: runWords } : null,
  ].filter(Boolean);
}
