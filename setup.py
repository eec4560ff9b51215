from setuptools import find_packages, setup

EXPERIMENTS = "cfgjax._experiments"  # the folder experiments/ within the package, for `--config=digits` from anywhere

setup(
    packages=[*find_packages(include=["cfgjax", "cfgjax.*"]), EXPERIMENTS, f"{EXPERIMENTS}.sweeps"],
    package_dir={EXPERIMENTS: "experiments"},
)
