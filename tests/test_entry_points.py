"""Other people's packages, installed for real and used through the command line."""

from __future__ import annotations

import json
from pathlib import Path

from installed_packages import document_code, document_files, entry_points, install, install_document, run
from paths import ROOT
from safetensors.torch import save_file

from riebench.saes.formats import load_sae

SHIPPED_SAE = next((ROOT / "riebench/toyworld/assets/saes").glob("unet.mid_block.*")) / "final"
GROUPS = ("methods", "metrics", "networks", "sae_formats", "regions", "model_families", "model_presets")
RESULTS = Path("toy") / "toy-turbo"
METHOD = '''
from riebench.generation.edits import Branch, Edit, StaticEdit, Term
from riebench.methods.base import EditContext, method


@method("half_patch", access="PAM", needs=("updates",))
def half_patch(ctx: EditContext, *, branch: Branch = "both") -> Edit:
    """Add half the runs' difference inside the region."""
    sites = {}
    for block in ctx.blocks:
        positions = ctx.runs.positions("target", block)
        difference = (ctx.runs.updates("target", block) - ctx.runs.updates("source", block))[:, positions]
        sites[block] = StaticEdit((Term(positions, difference / 2),))
    return Edit(sites, branch=branch)
'''


def ask(folder: Path, *lines: str) -> list[str]:
    """Return what each line of Python on the registries prints, or its error."""
    start = "from pathlib import Path\nfrom riebench.registry import *\n"
    code = "".join(f"try:\n    {line}\nexcept Exception as e: print(repr(e))\n" for line in lines)
    done = run(folder, "-c", start + code)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def install_everything(folder: Path, version: str) -> None:
    """Install a package with one object of each kind but a model family."""
    modules = {
        "demo_methods": METHOD,
        "my_metrics": document_files("new-metric.md")["my_metrics.py"],
        "demo_formats": document_code("new-sae.md", "read_mine"),
        "demo_regions": document_code("regions.md", "class Centre"),
    }
    groups = {
        "methods": {"half_patch": "demo_methods:half_patch"},
        **entry_points(document_files("new-metric.md")["pyproject.toml"]),
        "sae_formats": {"mine": "demo_formats:read_mine"},
        "regions": {"centre": "demo_regions:Centre"},
    }
    install(folder, "riebench_demo", modules, groups, version, with_pip=True)


def write_sae(folder: Path) -> None:
    """Write the toy world's SAE of the middle block in the format of the document."""
    sae = load_sae(SHIPPED_SAE)
    folder.mkdir()
    decoder = (sae.directions * sae.row_scale[:, None]).T
    tensors = {"enc": sae.encoder, "dec": decoder, "bias": sae.latent_bias, "center": sae.pre_bias}
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()},
              folder / "mine.safetensors")  # fmt: skip
    (folder / "mine.json").write_text(json.dumps({"k": sae.k}))


def test_an_installed_package_serves_a_run_from_settings_to_tables(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install_everything(site, "1.0")
    write_sae(tmp_path / "sae")
    (tmp_path / "patch.yaml").write_text('method: half_patch\naccess: "PAM"\nblocks: [mid.0]\n')
    (tmp_path / "features.yaml").write_text(
        'method: sae\naccess: "PAM"\nblocks: [mid.0]\nsae: "mid.0=sae"\nparams: {n_features: 8}\n'
    )
    command = ["-m", "riebench", "run", "no_edit", "patch.yaml", "features.yaml", "--limit", "1", "--categories",
               "change_color", "--seeds", "0", "--results", "results", "--regions", "centre:share=0.6"]  # fmt: skip
    done = run(site, *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folders = {name: tmp_path / "results" / RESULTS / name for name in ("no_edit", "patch", "features")}
    specs = {name: json.loads((path / "run.json").read_text())["spec"] for name, path in folders.items()}
    # Only what is made by the package's method or reader depends on it, and all of it on the region provider.
    assert "packages" not in specs["no_edit"]
    assert specs["patch"]["packages"] == specs["features"]["packages"] == {"riebench_demo": "1.0"}
    assert {spec["regions"] for spec in specs.values()} == {"centre@riebench_demo-1.0:share=0.6"}
    scores = [json.loads(line) for line in (folders["patch"] / "scores.jsonl").read_text().splitlines()]
    (score,) = [one for one in scores if one["metric"] == "brightness_change"]
    assert score["version"] == 1 and score["backbone"] == "brightness-bt601" and 0 < score["value"] < 1
    assert "brightness-bt601" in json.loads((folders["patch"] / "scoring.json").read_text())["networks"]
    table = (tmp_path / "results" / RESULTS / "tables" / "per_method.md").read_text()
    assert "- `brightness_change`: change of brightness x100 (lower is better)\n" in table
    mask = next((tmp_path / "results" / RESULTS / "shared" / "masks").rglob("*.json")).read_text()
    assert "centre@riebench_demo-1.0" in mask
    # Without the package, stored results are read and shown all the same.
    (tmp_path / "none").mkdir()
    plain = run(tmp_path / "none", "-m", "riebench", "tables", "--results", "results", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert "brightness_change" not in (tmp_path / "results" / RESULTS / "tables" / "per_method.md").read_text()
    install_everything(tmp_path / "newer", "1.1")
    refused = run(tmp_path / "newer", *command, cwd=tmp_path)
    assert refused.returncode == 2 and "riebench_demo" in refused.stderr and "1.1" in refused.stderr


def test_the_guide_to_metrics_is_one_that_works(tmp_path: Path) -> None:
    files = install_document(tmp_path / "site", "new-metric.md")
    assert set(files) == {"my_metrics.py", "pyproject.toml", "test_my_metrics.py"}
    (tmp_path / "test_my_metrics.py").write_text(files["test_my_metrics.py"])
    done = run(tmp_path / "site", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_metrics.py", cwd=tmp_path)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_help_and_import_look_through_no_packages(tmp_path: Path) -> None:
    code = (
        "import sys, riebench, riebench.cli.main as m, riebench.registry as r\n"
        "sys.argv = ['riebench', '--help']\n"
        "try: m.main()\nexcept SystemExit: pass\n"
        "print('looked', r._installed.cache_info().misses)\n"
        "'sae' in r.METHODS, r.METHODS.names(), r.METRICS.names()\n"
        "print('looked', r._installed.cache_info().misses)\n"
    )
    done = run(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("looked")] == ["looked 0", "looked 1"]


def test_every_kind_of_object_has_a_group() -> None:
    from riebench import registry

    assert {one.group for one in registry._registries} == {f"riebench.{group}" for group in GROUPS}


def test_a_broken_package_disturbs_nobody_else(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "broken", {"broken": "import nowhere_to_be_found\n"},
            {"methods": {"wrecked": "broken:method"}, "metrics": {"bad": "broken:metric"}})  # fmt: skip
    known, wrecked, used = ask(
        site,
        "print('wrecked' in METHODS, METHODS.get('no_edit').name)",
        "METHODS.get('wrecked')",
        "print('bad' in METRICS.names(), 'bad' in METRICS.usable(), METRICS.failures())",
    )
    assert known == "True no_edit"
    expected = "method 'wrecked' of the package broken 1.0 is unusable: ModuleNotFoundError: No module named"
    assert expected in wrecked
    assert used.startswith("True False") and "the package broken 1.0" in used
    (tmp_path / "wrecked.yaml").write_text("method: wrecked\n")
    done = run(site, "-m", "riebench", "run", str(tmp_path / "wrecked.yaml"), "--dry-run", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("riebench: ")
    assert "the package broken 1.0" in done.stderr and "Traceback" not in done.stderr


def test_objects_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    cases = [
        ("no_edit", METHOD, "the package taker 1.0 takes the name of the method 'no_edit', which is there already"),
        ("absent", "x = 1\n", "method 'absent' of the package taker 1.0 is unusable: AttributeError"),
        ("number", "half_patch = len\n", "the package taker 1.0 is unusable: it is no Method"),
        ("renamed", METHOD, "the package taker 1.0 is unusable: it calls itself 'half_patch'"),
        ("half_patch", METHOD + '\nMETHODS = method("sae", access="P")(lambda ctx: None)\n',
         "is unusable: the package taker 1.0 takes the name of the method 'sae'"),
    ]  # fmt: skip
    modules = {f"taker_{name}": code for name, code, _ in cases}
    install(tmp_path / "site", "taker", modules, {"methods": {name: f"taker_{name}:half_patch" for name, *_ in cases}})
    found = ask(tmp_path / "site", *(f"METHODS.get({name!r})" for name, *_ in cases),
                "print(METHODS.get('sae').function.__module__)")  # fmt: skip
    for (_, _, message), line in zip(cases, found, strict=False):
        assert message in line and "\\n" not in line
    # What ships is untouched by code that failed.
    assert found[len(cases) :] == ["riebench.methods.features"]


def test_two_packages_cannot_have_one_name(tmp_path: Path) -> None:
    for package in ("first", "second"):
        groups = {"methods": {"half_patch": f"{package}:half_patch", package: f"{package}:half_patch"}}
        install(tmp_path / "site", package, {package: METHOD}, groups)
    plugin = tmp_path / "plugin.py"
    plugin.write_text(METHOD)
    load = f"from riebench.tasks.settings import load_plugin; load_plugin(Path({str(plugin)!r}))"
    found, loaded = ask(tmp_path / "site", "METHODS.get('half_patch')", load)
    assert "is in several installed packages, first 1.0 and second 1.0; uninstall all but one" in found
    assert "the method 'half_patch' is also in the installed package" in loaded


def test_a_reader_of_a_package_comes_after_those_that_ship(tmp_path: Path) -> None:
    code = document_code("new-sae.md", "read_mine").replace('needs=("mine.safetensors", "mine.json")', "needs=NEEDS")
    code = 'NEEDS = ("state_dict.pth", "config.json")\n' + code
    install(tmp_path / "site", "greedy", {"greedy": code}, {"sae_formats": {"mine": "greedy:read_mine"}})
    load = f"from riebench.saes.formats import load_sae; print(load_sae(Path({str(SHIPPED_SAE)!r})).format)"
    assert ask(tmp_path / "site", load) == ["sdxl-unbox"]
