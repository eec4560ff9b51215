/* The page of the playground: controls, pictures, playback and results. */
"use strict";

(() => {
  const MASSES = [0.2, 0.5, 0.9]; // inside the orange lines
  const RADIUS_OF_90 = Math.sqrt(2 * Math.log(10)); // in standard deviations of a Gaussian in two dimensions
  const CONTOUR_CELLS = 120;
  const NUM_PATHS = 40;
  const PLAY_SECONDS = 6;

  const find = (id) => document.getElementById(id);
  const figures = [...document.querySelectorAll("figure")];
  const canvases = figures.map((figure) => figure.querySelector("canvas"));
  const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

  let settings = Settings.decode(location.hash);
  let active = 0; // the panel that the controls change
  let runs = []; // what `run` returns, of each panel
  let logsnr = Infinity; // the level that is shown; ∞ are the samples
  let playing = null; // the request of the next frame
  let addressTimer = null;
  let isScheduled = false; // whether `refresh` is

  // Computation

  /** Returns make(...keys), remembered until a key changes. */
  function remembered(make) {
    let known = null;
    return (...keys) => {
      const text = JSON.stringify(keys);
      if (known?.text !== text) known = { text, value: make(...keys) };
      return known.value;
    };
  }

  const componentsOf = (mixture) => Settings.MIXTURES[mixture].components;

  const quadratureOf = remembered((mixture, label) => Diffusion.quadrature(componentsOf(mixture), label));

  /** Returns {xs, ys, strong, weak} on the cells of the picture. */
  const pictureOf = remembered((mixture, label) => {
    const { centre, reach } = Settings.MIXTURES[mixture].view;
    const [xs, ys] = centre.map((c) => Diffusion.spaced(c - 2 * reach, c + 2 * reach, 2 * CONTOUR_CELLS));
    return { xs, ys, ...Diffusion.logDensities(componentsOf(mixture), label, xs, ys) };
  });

  const targets = [0, 1].map(() =>
    remembered((mixture, label, w) => {
      const target = Diffusion.tilted(quadratureOf(mixture, label), w, MASSES);
      const { xs, ys, strong, weak } = pictureOf(mixture, label);
      const values = strong.map((value, i) => Diffusion.logTilted(value, weak[i], w));
      return { ...target, contours: target.thresholds.map((threshold) => contour(xs, ys, values, threshold)) };
    }),
  );

  const paths = [0, 1].map(() =>
    remembered((mixture, label, count, seed, guidance, sampler, logsnrs) => {
      const denoise = Diffusion.denoiser(componentsOf(mixture), label, guidance, logsnrs);
      return Diffusion.sample(sampler, denoise, logsnrs, (step) => Diffusion.noise(seed, step, count));
    }),
  );

  /** Returns all that is shown of a panel. */
  function run(panel, i) {
    const { mixture, label, count, seed } = settings.shared;
    const guidance = Settings.guidanceOf(panel);
    const sampler = Settings.samplerOf(panel);
    const logsnrs = Diffusion.gridLevels(Settings.gridOf(panel), panel.steps);
    const path = paths[i](mixture, label, count, seed, guidance, sampler, logsnrs);
    const target = targets[i](mixture, label, panel.w);
    const samples = path.at(-1);
    return {
      logsnrs,
      path,
      target,
      moments: Diffusion.moments(samples),
      inside: sharesInside(samples, target.thresholds, panel.w),
      evaluations: Diffusion.evaluations(guidance, sampler, logsnrs),
      isGuided: logsnrs.map((level) => Diffusion.usesWeak(guidance, level)),
    };
  }

  /** Returns the shares of the samples at which the tilted density is above each threshold. */
  function sharesInside(samples, thresholds, w) {
    const { mixture, label } = settings.shared;
    const log = (i, given) => Diffusion.logProb(componentsOf(mixture), samples[i], samples[i + 1], given);
    const logs = [];
    for (let i = 0; i < samples.length; i += 2) logs.push(Diffusion.logTilted(log(i, label), log(i, null), w));
    return thresholds.map((threshold) => logs.filter((value) => value >= threshold).length / logs.length);
  }

  /** Returns the segments x₁, y₁, x₂, y₂ of the line values = threshold, by marching squares. */
  function contour(xs, ys, values, threshold) {
    const segments = [];
    const at = (i, j) => values[j * xs.length + i] - threshold;
    const crossings = (i, j) => {
      const [left, right, low, high] = [i, i + 1, j, j + 1];
      const edges = [left, low, right, low, right, high, left, high, left, low];
      return [0, 2, 4, 6].flatMap((k) => {
        const [a, b, c, d] = edges.slice(k, k + 4);
        const [first, second] = [at(a, b), at(c, d)];
        if (first > 0 === second > 0) return [];
        const part = first / (first - second);
        return [xs[a] + part * (xs[c] - xs[a]), ys[b] + part * (ys[d] - ys[b])];
      });
    };
    for (let j = 0; j + 1 < ys.length; j++) {
      for (let i = 0; i + 1 < xs.length; i++) segments.push(...crossings(i, j));
    }
    return segments;
  }

  // Pictures

  /** Returns the context of a canvas that is cleared and measured in CSS pixels, and its size. */
  function cleared(canvas) {
    const { clientWidth: width, clientHeight: height } = canvas;
    const scale = devicePixelRatio || 1;
    const [pixelsWide, pixelsHigh] = [Math.round(width * scale), Math.round(height * scale)];
    if (canvas.width !== pixelsWide || canvas.height !== pixelsHigh) {
      canvas.width = pixelsWide;
      canvas.height = pixelsHigh;
    }
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    return { context, width, height };
  }

  /** Returns {toX, toY, scale} from the plane to the pixels of a canvas. */
  function projection({ clientWidth: width, clientHeight: height }) {
    const { centre, reach } = Settings.MIXTURES[settings.shared.mixture].view;
    const scale = Math.min(width, height) / (2 * reach);
    return {
      scale,
      toX: (x) => width / 2 + (x - centre[0]) * scale,
      toY: (y) => height / 2 - (y - centre[1]) * scale,
    };
  }

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);

  function draw() {
    if (isScheduled) return; // `refresh` draws, and until then the runs are of other settings
    runs.forEach((shown, i) => drawPanel(canvases[i], shown));
    drawLevels();
    showLevel();
  }

  function drawPanel(canvas, { path, logsnrs, target }) {
    const { context, width, height } = cleared(canvas);
    const { toX, toY, scale } = projection(canvas);
    const { mixture, label, trails } = settings.shared;

    const strokes = (name, lineWidth, trace) => {
      context.strokeStyle = colour(name);
      context.lineWidth = lineWidth;
      context.beginPath();
      trace();
      context.stroke();
    };
    const circle = ({ mean, std }) => {
      const radius = RADIUS_OF_90 * std * scale;
      context.moveTo(toX(mean[0]) + radius, toY(mean[1]));
      context.arc(toX(mean[0]), toY(mean[1]), radius, 0, 2 * Math.PI);
    };

    strokes("grid", 1, () => {
      for (let k = -9; k <= 9; k++) {
        context.moveTo(toX(k), 0);
        context.lineTo(toX(k), height);
        context.moveTo(0, toY(k));
        context.lineTo(width, toY(k));
      }
    });
    const components = componentsOf(mixture);
    strokes("others", 1, () => components.filter((_, k) => k !== label).forEach(circle));
    context.setLineDash([6, 5]);
    strokes("class", 1.5, () => circle(components[label]));
    context.setLineDash([]);
    components.forEach((component, k) => drawName(context, component, k, k === label, toX, toY));
    if (trails) strokes("path", 1, () => tracePaths(context, path, logsnrs, toX, toY));

    const points = Diffusion.positionsAt(path, logsnrs, logsnr);
    const size = Math.max(1.2, Math.min(2.2, 60 / Math.sqrt(points.length / 2)));
    context.fillStyle = colour("sample");
    context.globalAlpha = 0.6;
    for (let i = 0; i < points.length; i += 2) {
      context.beginPath();
      context.arc(toX(points[i]), toY(points[i + 1]), size, 0, 2 * Math.PI);
      context.fill();
    }
    context.globalAlpha = 1;

    target.contours.forEach((segments) =>
      strokes("tilted", 1.8, () => {
        for (let i = 0; i < segments.length; i += 4) {
          context.moveTo(toX(segments[i]), toY(segments[i + 1]));
          context.lineTo(toX(segments[i + 2]), toY(segments[i + 3]));
        }
      }),
    );
  }

  /** Draws a class's number on its circle: outside, or for the own class, whose samples move outside, inside. */
  function drawName(context, { mean, std }, k, isOwn, toX, toY) {
    const { centre } = Settings.MIXTURES[settings.shared.mixture].view;
    const away = Math.atan2(mean[1] - centre[1], mean[0] - centre[0]);
    const reach = (isOwn ? -1 : 1) * RADIUS_OF_90 * std;
    const x = toX(mean[0] + reach * Math.cos(away));
    const y = toY(mean[1] + reach * Math.sin(away));
    context.font = `${isOwn ? "bold " : ""}13px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillStyle = colour("background");
    context.fillRect(x - 7, y - 9, 14, 18);
    context.fillStyle = colour(isOwn ? "class" : "quiet");
    context.fillText(k, x, y);
  }

  function tracePaths(context, path, logsnrs, toX, toY) {
    const last = Math.min(logsnr, Diffusion.LOGSNR_MAX);
    const first = Math.min(logsnrs[0], last);
    const stops = Diffusion.spaced(first, last, 120).map((level) => Diffusion.positionsAt(path, logsnrs, level));
    for (let i = 0; i < 2 * NUM_PATHS; i += 2) {
      stops.forEach((z, k) => context[k ? "lineTo" : "moveTo"](toX(z[i]), toY(z[i + 1])));
    }
  }

  /** Draws a row of ticks for the levels of each panel, tall where guidance is on. */
  function drawLevels() {
    const { context, width, height } = cleared(find("levels"));
    const thumb = 8; // half of the width of the slider's thumb, which does not reach the ends
    const row = height / runs.length;
    runs.forEach(({ logsnrs, isGuided }, i) => {
      logsnrs.forEach((level, k) => {
        const part = (level - Diffusion.LOGSNR_MIN) / (Diffusion.LOGSNR_MAX - Diffusion.LOGSNR_MIN);
        const tick = isGuided[k] ? row - 2 : row / 3;
        context.fillStyle = colour(isGuided[k] ? "sample" : "others");
        context.fillRect(thumb + part * (width - 2 * thumb) - 1, (i + 1) * row - tick, 2, tick);
      });
    });
  }

  function showLevel() {
    find("position").value = Math.min(logsnr, Diffusion.LOGSNR_MAX);
    const text =
      logsnr === Infinity ? "samples" : `λ = ${signed(logsnr, 1)}, ς = ${significant(Math.exp(-logsnr / 2))}`;
    find("level").value = text;
    find("position").setAttribute("aria-valuetext", text);
  }

  const signed = (value, digits) =>
    value
      .toFixed(digits)
      .replace(/^-(0\.?0*)$/, "$1")
      .replace("-", "−");
  const plain = (value) => String(Number(value.toFixed(2))).replace("-", "−");
  const significant = (value) => Number(value.toPrecision(2));
  const pair = (values) => values.map((value) => signed(value, 2)).join(", ");

  // Results

  function showResults() {
    const compares = settings.panels.length > 1;
    const rows = settings.panels.flatMap((panel, i) => {
      const { moments, inside, evaluations, target } = runs[i];
      const name = compares ? `${"AB"[i]}:\u00a0` : "";
      return [
        [`${name}samples`, pair(moments.mean), pair(moments.std), percents(inside), evaluations],
        [`${name}tilted, w\u00a0=\u00a0${plain(panel.w)}`, pair(target.mean), pair(target.std), percents(MASSES), ""],
      ];
    });
    find("moments").replaceChildren(
      ...rows.map((cells) => {
        const row = document.createElement("tr");
        row.append(...cells.map((text, k) => element(k ? "td" : "th", text, k ? {} : { scope: "row" })));
        return row;
      }),
    );
    find("python").textContent = settings.panels
      .map((panel, i) => (compares ? `# ${"AB"[i]}\n` : "") + Settings.pythonText(settings, panel))
      .join("\n");
    find("permalink").textContent = permalink();
    settings.panels.forEach((panel, i) => {
      const rule = Settings.ruleText(panel);
      const numbers = `w = ${plain(Settings.guidanceOf(panel).w)}, ${panel.steps} levels`;
      const title = `${compares ? `${"AB"[i]}: ` : ""}${rule}, ${Settings.samplerText(panel)}, ${numbers}`;
      figures[i].querySelector("figcaption").textContent = title;
      const [, mean, std, inside] = rows[2 * i];
      const words = `mean ${mean}; standard deviations ${std}; ${inside} % inside the lines of the tilted density`;
      canvases[i].setAttribute("aria-label", `Samples of class ${settings.shared.label}, ${title}: ${words}`);
    });
  }

  const percent = (share) => `${Math.round(100 * share)} %`;
  const percents = (shares) => shares.map((share) => Math.round(100 * share)).join(", ");

  function permalink() {
    const fragment = Settings.encode(settings);
    return location.href.split("#")[0] + (fragment && `#${fragment}`);
  }

  // Controls

  function element(tag, text = "", attributes = {}) {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  /** Makes the controls of fields. values: returns the object that they show; change: (name, value) → void. */
  function makeControls(parent, fields, values, change) {
    return Object.entries(fields).map(([name, field]) => {
      const row = element("div", "", { class: "field" });
      const update = { number: numberControl, choice: choiceControl, flag: flagControl }[field.kind];
      const show = (field.isClass ? classControl : update)(row, name, field, (value) => change(name, value));
      if (field.note) row.append(element("p", field.note, { class: "note" }));
      parent.append(row);
      return () => {
        row.hidden = !Settings.isUsed(field, values());
        show(values()[name]);
      };
    });
  }

  function numberControl(row, name, field, change) {
    const [toSlider, fromSlider] = field.log ? [Math.log10, (x) => significant(10 ** x)] : [(x) => x, (x) => x];
    const step = field.log ? 0.01 : field.step;
    const { min, max, label } = field;
    const slider = element("input", "", { type: "range", id: name, min: toSlider(min), max: toSlider(max), step });
    const box = element("input", "", { type: "number", min, max, step: field.log ? "any" : step, "aria-label": label });
    slider.addEventListener("input", () => change(fromSlider(Number(slider.value))));
    box.addEventListener("change", () => {
      const isNumber = box.value !== "" && Number.isFinite(box.valueAsNumber);
      change(isNumber ? Settings.clamped(field, box.valueAsNumber) : field.value);
    });
    row.append(element("label", label, { for: name }), slider, box);
    return (value) => {
      slider.value = toSlider(value);
      slider.setAttribute("aria-valuetext", value);
      box.value = value;
    };
  }

  function choiceControl(row, name, field, change) {
    const select = element("select", "", { id: name });
    for (const [value, text] of Object.entries(field.options)) select.append(element("option", text, { value }));
    select.addEventListener("change", () => change(select.value));
    row.append(element("label", field.label, { for: name }), select);
    const note = name === "rule" ? row.appendChild(element("p", "", { class: "note", "aria-live": "polite" })) : null;
    return (value) => {
      select.value = value;
      note?.replaceChildren(...withSubscripts(Settings.formulas[value]));
      if (name === "sampler") {
        for (const option of select.options) {
          option.disabled =
            settings.panels[active].rule === "cfg_plus_plus" && Settings.WITHOUT_EPS.includes(option.value);
        }
      }
    };
  }

  /** Returns the nodes of a text in which _c stands for a subscript c. */
  function withSubscripts(text) {
    return text.split(/_(\w)/).map((part, i) => (i % 2 ? element("sub", part) : document.createTextNode(part)));
  }

  function classControl(row, name, field, change) {
    const select = element("select", "", { id: name });
    select.addEventListener("change", () => change(Number(select.value)));
    row.append(element("label", field.label, { for: name }), select);
    return (value) => {
      const options = componentsOf(settings.shared.mixture).map(({ weight }, k) =>
        element("option", `${k} (${percent(weight)} of data)`, { value: k }),
      );
      select.replaceChildren(...options);
      select.value = value;
    };
  }

  function flagControl(row, name, field, change) {
    const label = element("label", "", { class: "flag" });
    const box = element("input", "", { type: "checkbox", id: name });
    box.addEventListener("change", () => change(box.checked));
    label.append(box, field.label);
    row.append(label);
    return (value) => (box.checked = value);
  }

  const changeShared = (name, value) => (settings.shared[name] = value);
  const changePanel = (name, value) => (settings.panels[active][name] = value);
  const thenUpdate = (change) => (name, value) => {
    change(name, value);
    update();
  };
  const shared = () => settings.shared;
  const panel = () => settings.panels[active];
  const controls = [
    ...makeControls(find("data-fields"), Settings.DATA, shared, thenUpdate(changeShared)),
    ...makeControls(find("guidance-fields"), Settings.GUIDANCE, panel, thenUpdate(changePanel)),
    ...makeControls(find("sampling-fields"), Settings.SAMPLING, panel, thenUpdate(changePanel)),
    ...makeControls(find("picture-fields"), Settings.PICTURE, shared, thenUpdate(changeShared)),
  ];

  function showControls() {
    const compares = settings.panels.length > 1;
    find("compare").checked = compares;
    find("editing").hidden = !compares;
    figures[1].hidden = !compares;
    find("panels").classList.toggle("compares", compares);
    figures.forEach((figure, i) => figure.classList.toggle("active", compares && i === active));
    document.querySelector(`[name=editing][value="${active}"]`).checked = true;
    controls.forEach((show) => show());
  }

  /** Computes and shows the settings at the next frame, once for all changes until then. */
  function update() {
    if (isScheduled) return;
    isScheduled = true;
    requestAnimationFrame(() => {
      isScheduled = false;
      refresh();
    });
  }

  function refresh() {
    settings = Settings.consistent(settings);
    active = Math.min(active, settings.panels.length - 1);
    showControls();
    runs = settings.panels.map(run);
    showResults();
    clearTimeout(addressTimer);
    addressTimer = setTimeout(() => history.replaceState(null, "", permalink()), 300); // browsers limit their number
    draw();
  }

  // Playback

  /** Returns the levels at which the step buttons stop: the last one looks like the samples, which replace it. */
  const stops = () => [...runs[active].logsnrs.slice(0, -1), Infinity];
  const noisiest = () => Math.min(...runs.map(({ logsnrs }) => logsnrs[0]));

  function pause() {
    cancelAnimationFrame(playing);
    playing = null;
    find("play").textContent = "Play";
  }

  function show(level) {
    logsnr = level >= Diffusion.LOGSNR_MAX ? Infinity : level;
    draw();
  }

  function play() {
    pause();
    find("play").textContent = "Pause";
    if (logsnr === Infinity) logsnr = noisiest();
    let before = performance.now();
    const frame = (now) => {
      // slow in the middle, where samples move; the integral of 1/(1 + (λ/4)²) from −12 to 12 is 10
      const speed = (10 / PLAY_SECONDS) * (1 + (logsnr / 4) ** 2);
      show(logsnr + speed * Math.min((now - before) / 1000, 0.05));
      before = now;
      if (logsnr === Infinity) pause();
      else playing = requestAnimationFrame(frame);
    };
    playing = requestAnimationFrame(frame);
  }

  function pauseAt(level) {
    pause();
    show(level);
  }

  find("position").min = Diffusion.LOGSNR_MIN;
  find("position").max = Diffusion.LOGSNR_MAX;
  find("position").addEventListener("input", (event) => pauseAt(Number(event.target.value)));
  find("play").addEventListener("click", () => (playing ? pause() : play()));
  find("back").addEventListener("click", () => pauseAt(stops().findLast((level) => level < logsnr) ?? noisiest()));
  find("forward").addEventListener("click", () => pauseAt(stops().find((level) => level > logsnr) ?? Infinity));

  // Events

  find("compare").addEventListener("change", (event) => {
    const [first] = settings.panels;
    settings.panels = event.target.checked ? [first, { ...first }] : [first];
    active = settings.panels.length - 1;
    update();
  });

  for (const radio of document.querySelectorAll("[name=editing]")) {
    radio.addEventListener("change", () => {
      active = Number(radio.value);
      update();
    });
  }

  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("controls").addEventListener("reset", () => {
    settings = Settings.decode("");
    update();
  });

  canvases.forEach((canvas, i) =>
    canvas.addEventListener("click", (event) => {
      active = i;
      const { toX, toY } = projection(canvas);
      const distances = componentsOf(settings.shared.mixture).map(({ mean }) =>
        Math.hypot(event.offsetX - toX(mean[0]), event.offsetY - toY(mean[1])),
      );
      settings.shared.label = distances.indexOf(Math.min(...distances));
      update();
    }),
  );

  for (const button of document.querySelectorAll("[data-copies]")) {
    button.addEventListener("click", async () => {
      const source = find(button.dataset.copies);
      getSelection().selectAllChildren(source);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Selected"; // browsers may refuse the clipboard
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }

  addEventListener("hashchange", () => {
    if (location.hash === "#about") return;
    settings = Settings.decode(location.hash);
    active = 0;
    logsnr = Infinity;
    scrollTo({ top: 0 });
    refresh();
    if (!reducedMotion.matches) play();
  });
  addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  refresh();
  if (!reducedMotion.matches) play();
})();
