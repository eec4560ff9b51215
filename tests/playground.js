/* The probe of tests/test_playground.py: adds what the page computes and shows to its document, as JSON. */
const componentsOf = (mixture) => Settings.MIXTURES[mixture].components;

function sampled({ fragment, noise }) {
  const { shared, panels } = Settings.decode(fragment);
  const guidance = Settings.guidanceOf(panels[0]);
  const sampler = Settings.samplerOf(panels[0]);
  const logsnrs = Diffusion.gridLevels(Settings.gridOf(panels[0]), panels[0].steps);
  const denoise = Diffusion.denoiser(componentsOf(shared.mixture), shared.label, guidance, logsnrs);
  const path = Diffusion.sample(sampler, denoise, logsnrs, (step) => Float64Array.from(noise[step].flat()));
  return {
    shared,
    w: guidance.w,
    blur: guidance.blur,
    logsnrs,
    rule: Settings.ruleText(panels[0]),
    sampler: Settings.samplerText(panels[0]),
    grid: Settings.gridText(panels[0]),
    python: Settings.pythonText({ shared }, panels[0]),
    samples: Array.from(path.at(-1)),
    evaluations: Diffusion.evaluations(guidance, sampler, logsnrs),
    encoded: Settings.encode({ shared, panels }),
    between: [-20, given.between, 11.9, Infinity].map((logsnr) =>
      Array.from(Diffusion.positionsAt(path, logsnrs, logsnr)),
    ),
  };
}

/** Returns moments and network evaluations of each panel of a permalink, with the page's own noise. */
function measured(fragment) {
  const { shared, panels } = Settings.decode(fragment);
  const mixture = componentsOf(shared.mixture);
  return panels.map((panel) => {
    const [guidance, sampler] = [Settings.guidanceOf(panel), Settings.samplerOf(panel)];
    const logsnrs = Diffusion.gridLevels(Settings.gridOf(panel), panel.steps);
    const denoise = Diffusion.denoiser(mixture, shared.label, guidance, logsnrs);
    const noiseAt = (step) => Diffusion.noise(shared.seed, step, shared.count);
    return {
      ...Diffusion.moments(Diffusion.sample(sampler, denoise, logsnrs, noiseAt).at(-1)),
      tilted: Diffusion.tilted(Diffusion.quadrature(mixture, shared.label), panel.w, given.masses),
      own: mixture[shared.label],
      evaluations: Diffusion.evaluations(guidance, sampler, logsnrs),
    };
  });
}

function predicted([logsnr, label]) {
  const points = Float64Array.from(given.points.flat());
  const { x, eps } = Diffusion.predict(componentsOf("three"), points, logsnr, label);
  return [Array.from(x), Array.from(eps)];
}

const moved = (id, value, type) => {
  const control = document.getElementById(id);
  if (control.type === "checkbox") control.checked = value;
  else control.value = value;
  control.dispatchEvent(new Event(type, { bubbles: true }));
};
const frame = () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
const shown = () => document.getElementById("permalink").textContent.split("#")[1] ?? "";

async function visited(fragment) {
  if (location.hash === `#${fragment}`) return shown(); // no event would follow
  const arrived = new Promise((resolve) => addEventListener("hashchange", resolve, { once: true }));
  location.hash = fragment;
  await arrived;
  return shown();
}

function unnamed() {
  const controls = [...document.querySelectorAll("button, input, select")];
  const isNamed = (control) => control.labels?.length || control.ariaLabel || control.textContent.trim();
  return controls.filter((control) => !isNamed(control)).map((control) => control.outerHTML);
}

const outcome = async () => ({
  initial: shown(),
  mixtures: Object.fromEntries(Object.keys(Settings.MIXTURES).map((name) => [name, componentsOf(name)])),
  choices: Object.fromEntries(
    Object.entries({ ...Settings.DATA, ...Settings.GUIDANCE, ...Settings.SAMPLING })
      .filter(([, field]) => field.kind === "choice")
      .map(([name, field]) => [name, Object.keys(field.options)]),
  ),
  samples: given.settings.map(sampled),
  pairs: Object.keys(Settings.GUIDANCE.rule.options).flatMap((rule) =>
    Object.keys(Settings.SAMPLING.sampler.options).map((sampler) => {
      const [panel] = Settings.decode(`rule=${rule}&sampler=${sampler}`).panels;
      return [Settings.ruleText(panel), Settings.samplerText({ ...panel, sampler }), panel.sampler === sampler];
    }),
  ),
  predictions: given.predictions.map(predicted),
  tilted: given.tilted.map(([mixture, label, w]) =>
    Diffusion.tilted(Diffusion.quadrature(componentsOf(mixture), label), w, given.masses),
  ),
  noise: [
    [0, 0, 5000],
    [0, 0, 7],
    [0, 1, 5000],
    [1, 0, 5000],
  ].map((args) => Array.from(Diffusion.noise(...args))),
  links: [...document.querySelectorAll('a[href*="="]')]
    .map((link) => link.hash.slice(1))
    .map((fragment) => ({ fragment, encoded: Settings.encode(Settings.decode(fragment)), panels: measured(fragment) })),
  visited: await (async () => {
    const found = [];
    for (const { fragment } of given.settings.toReversed()) found.unshift(await visited(fragment));
    return found;
  })(),
  repaired: await visited("w=1e9&steps=abc&rule=none&label=7&sampler=constructor&unknown=1"),
  moved: await (async () => {
    await visited("seed=3");
    moved("w", 2.5, "input");
    moved("sampler", "heun", "change");
    moved("compare", true, "change");
    await frame();
    moved("rule", "apg", "change");
    await frame();
    return shown();
  })(),
  played: await (async () => {
    const press = (id) => document.getElementById(id).click();
    const state = () => [document.getElementById("play").textContent, document.getElementById("level").value];
    moved("position", 12, "input");
    const found = [];
    for (const id of ["forward", "back", "forward", "play", "play"]) {
      press(id);
      found.push(state());
    }
    return found;
  })(),
  unnamed: unnamed(),
  errors,
});

outcome()
  .catch((error) => ({ errors: [String(error)] }))
  .then((found) => {
    const place = document.createElement("pre");
    place.id = "outcome";
    place.textContent = JSON.stringify(found);
    document.body.append(place);
  });
