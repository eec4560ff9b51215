/* The settings of the playground: the fields with their defaults and ranges, the permalink, and the text of a setting
   in Python. Settings are {shared, panels}, with one panel or, to compare, two. */
"use strict";

const Settings = (() => {
  const ring = Array.from({ length: 8 }, (_, k) => {
    const angle = (k * Math.PI) / 4;
    return { mean: [1.8 * Math.cos(angle), 1.8 * Math.sin(angle)], std: 0.4, weight: 1 / 8 };
  });

  // view: the centre of the picture, and the distance from it to the nearest edges
  const MIXTURES = {
    three: {
      components: [
        { mean: [0, 0], std: 0.5, weight: 0.4 },
        { mean: [1.6, 0.5], std: 0.6, weight: 0.3 },
        { mean: [-0.4, 1.5], std: 0.6, weight: 0.3 },
      ],
      view: { centre: [0.1, 0.2], reach: 2.7 },
    },
    overlapping: {
      components: [
        { mean: [-0.5, 0], std: 0.7, weight: 0.5 },
        { mean: [0.5, 0], std: 0.7, weight: 0.5 },
      ],
      view: { centre: [0, 0], reach: 2.6 },
    },
    rare: {
      components: [
        { mean: [-0.3, -0.2], std: 0.9, weight: 0.95 },
        { mean: [0.9, 0.8], std: 0.35, weight: 0.05 },
      ],
      view: { centre: [-0.1, 0], reach: 2.4 },
    },
    ring: { components: ring, view: { centre: [0, 0], reach: 3.3 } },
  };

  const number = (label, value, min, max, step, rest) => ({ kind: "number", label, value, min, max, step, ...rest });
  const choice = (label, value, options, rest) => ({ kind: "choice", label, value, options, ...rest });
  const flag = (label, value, rest) => ({ kind: "flag", label, value, ...rest });

  const DATA = {
    mixture: choice("Mixture", "three", {
      three: "Three classes",
      overlapping: "Two overlapping classes",
      rare: "A rare class",
      ring: "A ring of eight",
    }),
    label: number("Class", 0, 0, 7, 1, { isClass: true }),
  };

  const PICTURE = {
    count: number("Samples", 1000, 100, 3000, 100),
    seed: number("Seed", 0, 0, 999, 1),
    trails: flag("Show the paths of 40 samples", false),
  };

  const SHARED = { ...DATA, ...PICTURE };

  const hasRule =
    (...rules) =>
    (panel) =>
      rules.includes(panel.rule);
  const hasSampler =
    (...samplers) =>
    (panel) =>
      samplers.includes(panel.sampler);
  const hasGrid = (grid) => (panel) => panel.grid === grid;
  const canBeLimited = (panel) => panel.rule !== "conditional";
  const isLimited = (panel) => canBeLimited(panel) && panel.limited;

  // when: whether a panel uses the field; unused fields are hidden, and are no part of the permalink
  const GUIDANCE = {
    rule: choice("Rule", "cfg", {
      cfg: "Classifier-free guidance",
      conditional: "No guidance",
      ramp: "Ramp of the weight",
      apg: "Adaptive projected (APG)",
      cfg_plus_plus: "CFG++",
      cfg_zero: "CFG-Zero*",
      negative: "Negative class",
      autoguidance: "Autoguidance",
    }),
    w: number("Weight w", 1.5, -1, 6, 0.05, { note: "s = 1 + w is the guidance scale. w = 0 is the class itself." }),
    g: number("Scale g", 0.25, 0, 1, 0.01, { when: hasRule("cfg_plus_plus"), note: "In Python, w = g − 1." }),
    shape: choice("Shape", "cosine", { linear: "Linear", cosine: "Cosine" }, { when: hasRule("ramp") }),
    apg_eta: number("Parallel part η", 0, 0, 1, 0.05, { when: hasRule("apg") }),
    zero_steps: number("Steps at rest", 1, 0, 8, 1, { when: hasRule("cfg_zero") }),
    negative: number("Away from class", 1, 0, 7, 1, { isClass: true, when: hasRule("negative") }),
    blur: number("Blur of the weak model", 0.65, 0.05, 2, 0.05, { when: hasRule("autoguidance") }),
    limited: flag("Only in an interval of noise levels", false, { when: canBeLimited }),
    low: number("Above ς", 0.3, 0.01, 100, 0.01, { log: true, when: isLimited }),
    high: number("Up to ς", 2, 0.01, 100, 0.01, { log: true, when: isLimited }),
  };

  const SAMPLING = {
    sampler: choice("Sampler", "dpmpp_2m", {
      ddim: "DDIM",
      heun: "Heun",
      dpmpp_2m: "DPM-Solver++ 2M",
      dpmpp_2m_sde: "DPM-Solver++ 2M SDE",
      unipc: "UniPC",
      ancestral: "Ancestral",
    }),
    ddim_eta: number("Noise η", 0, 0, 1, 0.05, { when: hasSampler("ddim") }),
    sde_eta: number("Noise η", 1, 0, 1, 0.05, { when: hasSampler("dpmpp_2m_sde") }),
    v: number("Variance v", 0, 0, 1, 0.05, { when: hasSampler("ancestral") }),
    grid: choice("Grid", "edm", {
      edm: "EDM",
      schedule: "Cosine schedule",
      uniform: "Uniform in λ",
      flow: "Flow time",
    }),
    rho: number("ρ", 7, 1, 20, 0.5, { when: hasGrid("edm") }),
    shift: number("Shift", 1, 0.25, 8, 0.25, { when: hasGrid("flow") }),
    steps: number("Levels", 32, 2, 128, 1),
  };

  const PANEL = { ...GUIDANCE, ...SAMPLING };
  const WITHOUT_EPS = ["ancestral", "heun"]; // samplers that do not renoise x̃ with ε̃, which CFG++ needs

  const isUsed = (field, values) => !field.when || field.when(values);

  const formulas = {
    cfg: "ε̃ = (1+w) ε_c − w ε_u",
    conditional: "ε̃ = ε_c",
    ramp: "As classifier-free guidance, with a weight that grows from 0 at the noise to 2w.",
    apg: "x̃ = x̂_c + w (Δ⊥ + η Δ∥), with the parts of Δ = x̂_c − x̂_u across and along x̂_c.",
    cfg_plus_plus: "x̃ from ε_u + g (ε_c − ε_u), renoised with ε_u. The effect of g depends on the number of levels.",
    cfg_zero: "ũ = (1+w) u_c − w s* u_u on the velocity u = ε − x, with s* = ⟨u_c, u_u⟩/‖u_u‖², and ũ = 0 at first.",
    negative: "ε̃ = ε_n + (1+w)(ε_c − ε_n), away from class n instead of the whole mixture.",
    autoguidance: "x̃ = x̂_k + (1+w)(x̂_c − x̂_k). The weak model k is the same class, blurred.",
  };

  /** Returns text as a value of a field, or the field's own value if the text is none. */
  function parsed(field, text) {
    if (text === null) return field.value;
    if (field.kind === "flag") return text === "true";
    if (field.kind === "choice") return Object.hasOwn(field.options, text) ? text : field.value;
    return text.trim() !== "" && Number.isFinite(Number(text)) ? clamped(field, Number(text)) : field.value;
  }

  function clamped({ min, max, step }, value) {
    const whole = step === 1 ? Math.round(value) : value;
    return Math.min(Math.max(whole, min), max);
  }

  /** Returns settings in which no value contradicts another one. */
  function consistent({ shared, panels }) {
    const numClasses = MIXTURES[shared.mixture].components.length;
    const inMixture = (label) => Math.min(label, numClasses - 1);
    return {
      shared: { ...shared, label: inMixture(shared.label) },
      panels: panels.map((panel) => ({
        ...panel,
        negative: inMixture(panel.negative),
        high: Math.max(panel.low, panel.high),
        sampler: panel.rule === "cfg_plus_plus" && WITHOUT_EPS.includes(panel.sampler) ? "ddim" : panel.sampler,
      })),
    };
  }

  const PREFIXES = ["", "b."]; // of the names of a panel's fields

  /** Returns the permalink's fragment: all values that are not the defaults. */
  function encode({ shared, panels }) {
    const params = new URLSearchParams();
    const add = (prefix, fields, values) => {
      for (const [name, field] of Object.entries(fields)) {
        if (values[name] !== field.value && isUsed(field, values)) params.set(prefix + name, values[name]);
      }
    };
    add("", SHARED, shared);
    if (panels.length > 1) params.set("compare", "true");
    panels.forEach((panel, i) => add(PREFIXES[i], PANEL, panel));
    return params.toString();
  }

  /** Returns the settings of a permalink's fragment. Unknown names and values are ignored. */
  function decode(fragment) {
    const params = new URLSearchParams(fragment.replace(/^#/, ""));
    const read = (prefix, fields) =>
      Object.fromEntries(
        Object.entries(fields).map(([name, field]) => [name, parsed(field, params.get(prefix + name))]),
      );
    const prefixes = params.get("compare") === "true" ? PREFIXES : PREFIXES.slice(0, 1);
    return consistent({ shared: read("", SHARED), panels: prefixes.map((prefix) => read(prefix, PANEL)) });
  }

  // The arguments of Diffusion

  const guidanceOf = (panel) => ({
    rule: panel.rule,
    w: { conditional: 0, cfg_plus_plus: panel.g - 1 }[panel.rule] ?? panel.w,
    low: isLimited(panel) ? panel.low : null,
    high: isLimited(panel) ? panel.high : null,
    shape: panel.shape,
    eta: panel.apg_eta,
    zero_steps: panel.zero_steps,
    negative: panel.negative,
    blur: panel.blur,
  });

  const samplerOf = (panel) => ({
    name: panel.sampler,
    eta: panel.sampler === "ddim" ? panel.ddim_eta : panel.sde_eta,
    v: panel.v,
  });

  const gridOf = (panel) => ({ name: panel.grid, rho: panel.rho, shift: panel.shift });

  // The same in Python

  function ruleText(panel, weak = "") {
    const inner = {
      ramp: `ramp(shape='${panel.shape}')`,
      apg: `apg(eta=${panel.apg_eta})`,
      cfg_zero: `cfg_zero(zero_steps=${panel.zero_steps})`,
      negative: `negative(label=${panel.negative})`,
      autoguidance: `autoguidance(${weak})`,
    };
    const text = inner[panel.rule] ?? `${panel.rule}()`;
    return isLimited(panel) ? `interval(${text}, low=${panel.low}, high=${panel.high})` : text;
  }

  function samplerText(panel) {
    const numbers = { ddim: `eta=${panel.ddim_eta}`, dpmpp_2m_sde: `eta=${panel.sde_eta}`, ancestral: `v=${panel.v}` };
    return `${panel.sampler}(${numbers[panel.sampler] ?? ""})`;
  }

  function gridText(panel) {
    const numbers = { edm: `rho=${panel.rho}`, flow: `shift=${panel.shift}` };
    return `${panel.grid}(${numbers[panel.grid] ?? ""})`;
  }

  /** Returns the call of cfgjax that samples with these settings. */
  function pythonText({ shared }, panel) {
    const needsWeak = panel.rule === "autoguidance"; // a model has no text
    const rule = needsWeak ? ruleText(panel, "weak=weak") : `"${ruleText(panel)}"`;
    const w = Number(guidanceOf(panel).w.toFixed(4));
    return (
      `model.sample([${shared.label}], ${w}, rule=${rule}, sampler="${samplerText(panel)}", ` +
      `grid="${gridText(panel)}", num_steps=${panel.steps})`
    );
  }

  return {
    MIXTURES,
    DATA,
    PICTURE,
    GUIDANCE,
    SAMPLING,
    WITHOUT_EPS,
    formulas,
    isUsed,
    clamped,
    consistent,
    encode,
    decode,
    guidanceOf,
    samplerOf,
    gridOf,
    ruleText,
    samplerText,
    gridText,
    pythonText,
  };
})();
