/* The mathematics of the playground in float64: the exact predictions of a Gaussian mixture, guidance rules, samplers,
   grids and the tilted density. It follows cfgjax/diffusion; tests/test_playground.py compares the two.

   Points [N, 2] are a Float64Array x₀, y₀, x₁, y₁, … A mixture is a list of components {mean, std, weight}, and component
   k is class k; the label null is no class. A prediction is {x, eps}. logsnr is λ = log(α²/σ²), and ς = σ/α = e^{−λ/2}.
   Guidance is {rule, w, low, high} with the numbers of its rule; low and high bound ς. Samplers and grids are {name} with
   their numbers. */
"use strict";

const Diffusion = (() => {
  const LOGSNR_MIN = -12;
  const LOGSNR_MAX = 12;
  const EDM_SIGMA_MIN = 0.002;
  const EDM_SIGMA_MAX = 80;

  // The process, cfgjax/diffusion/process.py

  const sigmoid = (x) => 1 / (1 + Math.exp(-x));

  /** Returns [α, σ] with α² + σ² = 1. */
  const alphaSigma = (logsnr) => [Math.sqrt(sigmoid(logsnr)), Math.sqrt(sigmoid(-logsnr))];

  /** Returns Σ coefficient · array of terms [coefficient, array]. */
  function linear(...terms) {
    const sum = new Float64Array(terms[0][1].length);
    for (const [coefficient, array] of terms) {
      for (let i = 0; i < sum.length; i++) sum[i] += coefficient * array[i];
    }
    return sum;
  }

  // The mixture, cfgjax/diffusion/mixture.py

  const selected = (mixture, label) => (label === null ? mixture : [{ ...mixture[label], weight: 1 }]);

  /** Returns E[x | z, label] and E[ε | z, label] at λ, exactly. */
  function predict(mixture, z, logsnr, label) {
    const [alpha, sigma] = alphaSigma(logsnr);
    const components = selected(mixture, label).map(({ mean, std, weight }) => {
      const variance = (alpha * std) ** 2 + sigma ** 2;
      return {
        mean,
        offsetX: alpha * mean[0],
        offsetY: alpha * mean[1],
        logScale: Math.log(weight / variance),
        halfPrecision: 0.5 / variance,
        gainX: (alpha * std ** 2) / variance,
        gainEps: sigma / variance,
      };
    });
    const x = new Float64Array(z.length);
    const eps = new Float64Array(z.length);
    const logs = new Float64Array(components.length);
    for (let i = 0; i < z.length; i += 2) {
      for (let k = 0; k < components.length; k++) {
        const { offsetX, offsetY, logScale, halfPrecision } = components[k];
        logs[k] = logScale - halfPrecision * ((z[i] - offsetX) ** 2 + (z[i + 1] - offsetY) ** 2);
      }
      const largest = Math.max(...logs);
      let total = 0;
      for (let k = 0; k < components.length; k++) {
        const { mean, offsetX, offsetY, gainX, gainEps } = components[k];
        const responsibility = Math.exp(logs[k] - largest);
        total += responsibility;
        x[i] += responsibility * (mean[0] + gainX * (z[i] - offsetX));
        x[i + 1] += responsibility * (mean[1] + gainX * (z[i + 1] - offsetY));
        eps[i] += responsibility * gainEps * (z[i] - offsetX);
        eps[i + 1] += responsibility * gainEps * (z[i + 1] - offsetY);
      }
      for (const estimate of [x, eps]) {
        estimate[i] /= total;
        estimate[i + 1] /= total;
      }
    }
    return { x, eps };
  }

  /** Returns log p(x | label) of the data. */
  function logProb(mixture, x, y, label) {
    const logs = selected(mixture, label).map(({ mean, std, weight }) => {
      const square = ((x - mean[0]) ** 2 + (y - mean[1]) ** 2) / std ** 2;
      return Math.log(weight / (2 * Math.PI * std ** 2)) - 0.5 * square;
    });
    const largest = Math.max(...logs);
    return largest + Math.log(logs.reduce((sum, log) => sum + Math.exp(log - largest), 0));
  }

  /** Returns the mixture with every standard deviation √(s² + blur²): the weak model of autoguidance. */
  const blurred = (mixture, blur) => mixture.map((part) => ({ ...part, std: Math.hypot(part.std, blur) }));

  // Guidance, cfgjax/diffusion/guidance

  const WITHOUT_WEAK_AT_ZERO = ["cfg", "ramp", "apg", "negative", "autoguidance"];

  /** Returns whether the weak prediction is evaluated at λ. */
  function usesWeak({ rule, w, low, high }, logsnr) {
    if (rule === "conditional" || (w === 0 && WITHOUT_WEAK_AT_ZERO.includes(rule))) return false;
    return -2 * Math.log(high ?? Infinity) <= logsnr && logsnr < -2 * Math.log(low ?? 0);
  }

  /** Returns the prediction that guidance leads away from. */
  function predictWeak(mixture, z, logsnr, label, { rule, negative, blur }) {
    if (rule === "negative") return predict(mixture, z, logsnr, negative);
    if (rule === "autoguidance") return predict(blurred(mixture, blur), z, logsnr, label);
    return predict(mixture, z, logsnr, null);
  }

  function mixed(strong, weak, w) {
    return {
      x: linear([1 + w, strong.x], [-w, weak.x]),
      eps: linear([1 + w, strong.eps], [-w, weak.eps]),
    };
  }

  /** Returns f of w f: 0 at the first level, 2 at the last one. */
  function rampFactor(shape, step, numSteps) {
    const part = step / (numSteps - 1);
    return shape === "cosine" ? 1 - Math.cos(Math.PI * part) : 2 * part;
  }

  /** Returns x̂_c + w (Δ⊥ + η Δ∥) with ε̃ that agrees with it, Δ = x̂_c − x̂_u and Δ∥ its part along x̂_c. */
  function projected(strong, weak, w, eta, logsnr) {
    const { x, eps } = mixed(strong, weak, w);
    const signalToNoise = Math.exp(0.5 * logsnr);
    for (let i = 0; i < x.length; i += 2) {
      const [a, b] = [strong.x[i], strong.x[i + 1]];
      const product = (a - weak.x[i]) * a + (b - weak.x[i + 1]) * b;
      const along = product / Math.max(a ** 2 + b ** 2, 1e-30);
      const removed = w * (1 - eta) * along;
      x[i] -= removed * a;
      x[i + 1] -= removed * b;
      eps[i] += signalToNoise * removed * a;
      eps[i + 1] += signalToNoise * removed * b;
    }
    return { x, eps };
  }

  /** Returns the prediction of (1+w) u_c − w s* u_u, s* = ⟨u_c, u_u⟩/‖u_u‖², on the velocity u = ε − x of the flow. */
  function velocityScaled(strong, weak, w, logsnr) {
    const { x, eps } = mixed(strong, weak, w);
    const [alpha, sigma] = alphaSigma(logsnr);
    const time = sigma / (alpha + sigma);
    const strongVelocity = linear([1, strong.eps], [-1, strong.x]);
    const weakVelocity = linear([1, weak.eps], [-1, weak.x]);
    for (let i = 0; i < x.length; i += 2) {
      const [a, b] = [weakVelocity[i], weakVelocity[i + 1]];
      const scale = (strongVelocity[i] * a + strongVelocity[i + 1] * b) / (a ** 2 + b ** 2 + 1e-8);
      const excess = w * (scale - 1);
      x[i] += time * excess * a;
      x[i + 1] += time * excess * b;
      eps[i] -= (1 - time) * excess * a;
      eps[i + 1] -= (1 - time) * excess * b;
    }
    return { x, eps };
  }

  /** Returns the prediction of velocity 0, with which deterministic samplers leave z/(α+σ) as it is. */
  function atRest(z, logsnr) {
    const [alpha, sigma] = alphaSigma(logsnr);
    const still = linear([1 / (alpha + sigma), z]);
    return { x: still, eps: still };
  }

  /** Returns denoise(z, λ) → prediction on the levels of a grid. */
  function denoiser(mixture, label, guidance, logsnrs) {
    const { rule, w } = guidance;
    return (z, logsnr) => {
      const strong = predict(mixture, z, logsnr, label);
      if (!usesWeak(guidance, logsnr)) return strong;
      const weak = predictWeak(mixture, z, logsnr, label, guidance);
      const step = logsnrs.indexOf(logsnr);
      switch (rule) {
        case "ramp":
          return mixed(strong, weak, w * rampFactor(guidance.shape, step, logsnrs.length));
        case "apg":
          return projected(strong, weak, w, guidance.eta, logsnr);
        case "cfg_plus_plus":
          return { x: mixed(strong, weak, w).x, eps: weak.eps };
        case "cfg_zero":
          return step < guidance.zero_steps ? atRest(z, logsnr) : velocityScaled(strong, weak, w, logsnr);
        default:
          return mixed(strong, weak, w);
      }
    };
  }

  // Samplers, cfgjax/diffusion/samplers: functions of their numbers that return step(denoise, z, level, noise) → z'.
  // A level is {logsnr, next}: λ and λ'. Multistep samplers remember the levels before.

  const MAX_STEP_RATIO = 2;

  /** Returns x̃ continued to the middle of the step, or x̃ itself in a step much longer than the one before. */
  function extrapolated(x, before, level) {
    if (!before) return x;
    const ratio = (level.next - level.logsnr) / (level.logsnr - before.logsnr);
    return ratio > MAX_STEP_RATIO ? x : linear([1 + ratio / 2, x], [-ratio / 2, before.x]);
  }

  /** Returns (σ'/σ) z − α' (e^{−h} − 1) x, h = (λ'−λ)/2: the exact solution for constant x̃ = x. */
  function exponentialStep(z, x, logsnr, next) {
    const sigma = alphaSigma(logsnr)[1];
    const [alphaNext, sigmaNext] = alphaSigma(next);
    return linear([sigmaNext / sigma, z], [-alphaNext * Math.expm1(0.5 * (logsnr - next)), x]);
  }

  function ancestral({ v }) {
    return (denoise, z, { logsnr, next }, noise) => {
      const { x } = denoise(z, logsnr);
      const [alpha] = alphaSigma(logsnr);
      const [alphaNext] = alphaSigma(next);
      const rest = -Math.expm1(logsnr - next);
      const variance = rest * sigmoid(-next) ** (1 - v) * sigmoid(-logsnr) ** v;
      return linear([(1 - rest) * (alphaNext / alpha), z], [rest * alphaNext, x], [Math.sqrt(variance), noise]);
    };
  }

  function ddim({ eta }) {
    return (denoise, z, { logsnr, next }, noise) => {
      const { x, eps } = denoise(z, logsnr);
      const [alpha, sigma] = alphaSigma(next);
      const share = eta ** 2 * -Math.expm1(logsnr - next);
      return linear([alpha, x], [sigma * Math.sqrt(1 - share), eps], [sigma * Math.sqrt(share), noise]);
    };
  }

  function heun() {
    return (denoise, z, { logsnr, next }) => {
      const { x, eps } = denoise(z, logsnr);
      const [alpha, sigma] = alphaSigma(logsnr);
      const [alphaNext, sigmaNext] = alphaSigma(next);
      const euler = linear([alphaNext, x], [sigmaNext, eps]);
      const correction = 0.5 * (sigmaNext - (sigma * alphaNext) / alpha);
      return linear([1, euler], [correction, denoise(euler, next).eps], [-correction, eps]);
    };
  }

  function dpmpp2mSde({ eta }) {
    let before = null;
    return (denoise, z, level, noise) => {
      const { x, eps } = denoise(z, level.logsnr);
      const [alpha, sigma] = alphaSigma(level.next);
      const minusH = 0.5 * (level.logsnr - level.next);
      const middle = extrapolated(x, before, level);
      const weight = -alpha * Math.expm1((1 + eta) * minusH);
      before = { x, logsnr: level.logsnr };
      return linear(
        [alpha - weight, x],
        [weight, middle],
        [sigma * Math.exp(eta * minusH), eps],
        [sigma * Math.sqrt(-Math.expm1(2 * eta * minusH)), noise],
      );
    };
  }

  const dpmpp2m = () => dpmpp2mSde({ eta: 0 });

  function unipc() {
    const before = []; // {z, x, logsnr} of the level before, and of the one before that
    return (denoise, z, level) => {
      const { x, eps } = denoise(z, level.logsnr);
      const [alpha, sigma] = alphaSigma(level.logsnr);
      const corrected = linear([1, unipcCorrected(z, x, level.logsnr, before)], [alpha, x], [sigma, eps], [-1, z]);
      const zNext = exponentialStep(corrected, extrapolated(x, before[0], level), level.logsnr, level.next);
      before.unshift({ z: corrected, x, logsnr: level.logsnr });
      before.length = Math.min(before.length, 2);
      return zNext;
    };
  }

  /** Returns z corrected by x̃ at its own level: the step from the level before is repeated with it. */
  function unipcCorrected(z, x, logsnr, [last, earlier]) {
    if (!last) return z;
    if (!earlier) return exponentialStep(last.z, linear([0.5, last.x], [0.5, x]), last.logsnr, logsnr);
    const minusH = 0.5 * (last.logsnr - logsnr);
    const r = (earlier.logsnr - last.logsnr) / (logsnr - last.logsnr);
    const first = phi(2, minusH) / phi(1, minusH);
    const second = (2 * phi(3, minusH)) / phi(1, minusH);
    const rho1 = (first - second) / (1 - r);
    const rho2 = first - rho1;
    const middle = linear([1 - rho1 / r - rho2, last.x], [rho1 / r, earlier.x], [rho2, x]);
    return exponentialStep(last.z, middle, last.logsnr, logsnr);
  }

  /** Returns φ_k(x) = Σ_n x^n / (n+k)!, by the series where the recursion would lose digits. */
  function phi(k, x) {
    const factorial = (n) => (n < 2 ? 1 : n * factorial(n - 1));
    if (Math.abs(x) < 1) {
      let sum = 0;
      for (let n = 16; n >= 0; n--) sum = sum * x + 1 / factorial(n + k);
      return sum;
    }
    let value = Math.expm1(x) / x;
    for (let order = 2; order <= k; order++) value = (value - 1 / factorial(order - 1)) / x;
    return value;
  }

  const SAMPLERS = { ancestral, ddim, heun, dpmpp_2m: dpmpp2m, dpmpp_2m_sde: dpmpp2mSde, unipc };

  /** Returns z at every level and, last, the samples x̃ of the last level.
      noiseAt(step): noise of step 0 for z at the first level, and of 1, 2, … for the steps. */
  function sample(sampler, denoise, logsnrs, noiseAt) {
    const step = SAMPLERS[sampler.name](sampler);
    const path = [noiseAt(0)];
    logsnrs.slice(0, -1).forEach((logsnr, i) => {
      path.push(step(denoise, path[i], { logsnr, next: logsnrs[i + 1] }, noiseAt(i + 1)));
    });
    path.push(denoise(path.at(-1), logsnrs.at(-1)).x);
    return path;
  }

  /** Returns z at λ between the levels of a path: on the arc z = α x + σ ε through its two neighbours, which is the
      path of DDIM. Below the first level it is the first z; at λ = ∞ the samples. */
  function positionsAt(path, logsnrs, logsnr) {
    const after = logsnrs.findIndex((level) => level > logsnr);
    if (after === 0) return path[0];
    if (logsnr === Infinity) return path.at(-1);
    const i = (after < 0 ? logsnrs.length : after) - 1;
    const angle = (level) => Math.atan(Math.exp(-0.5 * level));
    const start = angle(logsnrs[i]);
    const end = after < 0 ? 0 : angle(logsnrs[after]);
    const here = angle(logsnr);
    const whole = Math.sin(start - end);
    return linear([Math.sin(here - end) / whole, path[i]], [Math.sin(start - here) / whole, path[i + 1]]);
  }

  /** Returns the number of network evaluations per sample: both branches count. */
  function evaluations(guidance, sampler, logsnrs) {
    const levels = sampler.name === "heun" ? [...logsnrs, ...logsnrs.slice(1)] : logsnrs;
    return levels.reduce((sum, logsnr) => sum + (usesWeak(guidance, logsnr) ? 2 : 1), 0);
  }

  // Grids, cfgjax/diffusion/grids.py and schedules.py: functions of a fraction, 0 at the noise, that return λ

  const between = (first, last, fraction) => first + fraction * (last - first);

  function cosineAt(fraction) {
    const b = Math.atan(Math.exp(-LOGSNR_MAX / 2));
    const bBar = Math.atan(Math.exp(LOGSNR_MIN / 2));
    const a = Math.PI / 2 - b - bBar;
    return 2 * (Math.log(Math.sin(a * fraction + bBar)) - Math.log(Math.sin(a * (1 - fraction) + b)));
  }

  function edmAt(fraction, { rho }) {
    const high = Math.min(EDM_SIGMA_MAX, Math.exp(-0.5 * LOGSNR_MIN));
    const low = Math.max(EDM_SIGMA_MIN, Math.exp(-0.5 * LOGSNR_MAX));
    return -2 * rho * Math.log(between(high ** (1 / rho), low ** (1 / rho), fraction));
  }

  const uniformAt = (fraction) => between(LOGSNR_MIN, LOGSNR_MAX, fraction);

  function flowAt(fraction, { shift }) {
    const ends = [LOGSNR_MIN, LOGSNR_MAX].map((logsnr) => logsnr + 2 * Math.log(shift));
    const time = between(...ends.map((end) => sigmoid(-0.5 * end)), fraction);
    const complement = between(...ends.map((end) => sigmoid(0.5 * end)), fraction);
    return 2 * Math.log(complement / time) - 2 * Math.log(shift);
  }

  const GRIDS = { schedule: cosineAt, edm: edmAt, uniform: uniformAt, flow: flowAt };

  /** Returns λ of the levels, increasing. */
  function gridLevels(grid, numSteps) {
    return spaced(0, 1, numSteps).map((fraction) => {
      const logsnr = GRIDS[grid.name](fraction, grid);
      return Math.min(Math.max(logsnr, LOGSNR_MIN), LOGSNR_MAX); // rounding errors
    });
  }

  // Densities

  /** Returns {mean, std} of points. */
  function moments(points) {
    const count = points.length / 2;
    const mean = [0, 0];
    const square = [0, 0];
    points.forEach((value, i) => (mean[i % 2] += value / count));
    points.forEach((value, i) => (square[i % 2] += (value - mean[i % 2]) ** 2 / count));
    return { mean, std: square.map(Math.sqrt) };
  }

  /** Returns {strong, weak}: log p(x|c) and log p(x) at all (x, y) of places × places, x running fastest. */
  function logDensities(mixture, label, xs, ys) {
    const at = (given) => Float64Array.from(ys.flatMap((y) => xs.map((x) => logProb(mixture, x, y, given))));
    return { strong: at(label), weak: at(null) };
  }

  /** Returns log p(x|c)^{1+w} p(x)^{−w}, not normalised, of log p(x|c) and log p(x). */
  const logTilted = (strong, weak, w) => (1 + w) * strong - w * weak;

  /** Returns places and logDensities on a square that holds the tilted density. For w ≥ 0 that density is at most a
      constant times p(x|c), and for w < 0 it may reach over all classes. */
  function quadrature(mixture, label, points = 201) {
    const reach = mixture.map((_, k) => (k === label ? 12 : 7));
    const ends = mixture.flatMap(({ mean, std }, k) => mean.flatMap((m) => [m - reach[k] * std, m + reach[k] * std]));
    const places = spaced(Math.min(...ends), Math.max(...ends), points);
    return { places, ...logDensities(mixture, label, places, places) };
  }

  const spaced = (first, last, count) => Array.from({ length: count }, (_, i) => between(first, last, i / (count - 1)));

  /** Returns {mean, std} of the tilted density, and thresholds: the values of `logTilted` above which `masses` lie. */
  function tilted({ places, strong, weak }, w, masses) {
    const logs = strong.map((value, i) => logTilted(value, weak[i], w));
    const largest = logs.reduce((a, b) => Math.max(a, b));
    const shares = logs.map((value) => Math.exp(value - largest));
    const total = shares.reduce((a, b) => a + b);
    const across = new Float64Array(places.length);
    const up = new Float64Array(places.length);
    shares.forEach((share, i) => {
      across[i % places.length] += share / total;
      up[Math.floor(i / places.length)] += share / total;
    });
    const expectation = (marginal, f) => marginal.reduce((sum, share, i) => sum + share * f(places[i]), 0);
    const mean = [across, up].map((marginal) => expectation(marginal, (x) => x));
    const std = [across, up].map((marginal, d) => Math.sqrt(expectation(marginal, (x) => (x - mean[d]) ** 2)));
    const descending = logs.sort().reverse();
    const thresholds = masses.map((mass) => {
      let above = 0;
      return descending.find((value) => (above += Math.exp(value - largest) / total) >= mass);
    });
    return { mean, std, thresholds };
  }

  // Noise

  const scrambled = (seed) => {
    let h = seed;
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    return (h ^ (h >>> 16)) >>> 0;
  };

  /** Returns N(0, I) of [count, 2], row i from (seed, step, i) alone. */
  function noise(seed, step, count) {
    const points = new Float64Array(2 * count);
    const key = scrambled(scrambled(seed + 0x9e3779b9) + step);
    for (let i = 0; i < count; i++) {
      const first = scrambled(key + Math.imul(i, 0x9e3779b1));
      const radius = Math.sqrt(-2 * Math.log((first + 0.5) / 2 ** 32));
      const angle = (2 * Math.PI * scrambled(first + 0x6d2b79f5)) / 2 ** 32;
      points[2 * i] = radius * Math.cos(angle);
      points[2 * i + 1] = radius * Math.sin(angle);
    }
    return points;
  }

  return {
    LOGSNR_MIN,
    LOGSNR_MAX,
    predict,
    denoiser,
    usesWeak,
    evaluations,
    sample,
    positionsAt,
    gridLevels,
    moments,
    logProb,
    logDensities,
    logTilted,
    quadrature,
    spaced,
    tilted,
    noise,
  };
})();
