"""Configuration: every file in conf/ holds, every mistake is one ValueError that names the key, text stays text."""

import inspect
import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import yaml

from ldm.asked import check_there
from ldm.build import Parts
from ldm.config import (
    CONF,
    SWEPT,
    accepts,
    compose,
    dump,
    expand_sweep,
    groups,
    guarded,
    help_text,
    instantiate,
    load_tree,
    overriding,
    registry,
    resolve_target,
    run_name,
    split_literal,
    takes,
    validate,
    words_of_step,
)  # fmt: skip
from ldm.config.registry import OVERRIDES
from ldm.diffusion.noise import NoiseDistribution
from ldm.errors import UserError
from ldm.training.ema import EMA

LEAVES = [f"{group}/{name}" for group, names in groups().items() for name in names if group not in OVERRIDES]
EXPERIMENTS = groups()["experiment"]
DIFFUSION = "experiment=quickstart/diffusion"
SMALL = [
    "network=unet",
    "conditioner=[text]",
    "data=quickstart",
    "expert=default",
    "callback=[]",
    "~logger",
]  # is quick


def read(name: str) -> dict:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


def leaf(name: str) -> dict:
    return {key: value for key, value in read(name).items() if key != "defaults"}


def parameters(target: Callable) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(target).parameters)


# conf/ itself


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_compose_and_validate(name):
    tree = compose("config", [f"experiment={name}"], complete=False)  # published models do not name your shards
    assert tree["task"]["_target_"].startswith("ldm.training.")
    assert "experiment" not in tree


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_hold_overrides_only_and_their_command_line(name):
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    assert "_target_" not in text
    assert f"experiment={name}" in text, "an experiment begins with the command that runs it"


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_bind_to_their_constructors(name):
    group = name.split("/")[0]
    node = leaf(name)
    nodes = node if "_target_" not in node else {group: node}
    for where, part in nodes.items():
        assert set(part) - {"_target_", "_partial_"} <= set(parameters(resolve_target(part["_target_"], where)))
        plain = {k: v for k, v in part.items() if not (isinstance(v, str) and ("${" in v or v == "???"))}
        validate({group: plain} if where == group else {group: {where: plain}})


def test_a_leaf_of_a_group_that_takes_several_nests_under_its_own_name():
    for group in ("conditioner", "callback", "loss_guidance"):  # of derived= several fill the same field
        for name in groups()[group]:
            assert list(leaf(f"{group}/{name}")) == [name]


def begun_with(name: str) -> dict:
    """The keys of the leaves that a leaf begins with."""
    above = [f"{name.split('/')[0]}/{each}" for each in read(name).get("defaults", []) if each != "_self_"]
    return {key: value for each in above for key, value in (begun_with(each) | leaf(each)).items()}


@pytest.mark.parametrize("group", ["data", "autoencoder"])
def test_a_key_that_the_options_of_a_group_share_is_one_line_in_one_file(group):
    names = [f"{group}/{option}" for option in groups()[group]]
    [base] = [name for name in names if not begun_with(name)]
    for name in names:
        above, own = begun_with(name), leaf(name)
        assert (above | own).keys() == leaf(base).keys()
        assert {key for key in own if key in above and own[key] == above[key]} <= {"_target_"}, f"{name} repeats it"


def test_only_facts_of_the_root_are_interpolated():
    root = set(leaf("config")) | {"sigmas"}  # the sigma schedule, for noise that is matched to it
    for name in LEAVES:
        text = (CONF / f"{name}.yaml").read_text()
        for fragment in text.split("${")[1:]:
            assert fragment.split("}")[0] in root, name


ROOTS = sorted(path.stem for path in CONF.glob("*.yaml"))


@pytest.mark.parametrize("root", ROOTS)
def test_a_root_key_bears_the_name_of_a_group_of_its_root_only_to_sweep_a_key_of_it(root):
    keys = read(root)
    chosen = {key for entry in keys.pop("defaults") if isinstance(entry, dict) for key in entry}
    both = [f"{group}.{key}" for group in sorted(chosen & set(keys)) for key in keys[group]]
    assert both == list(SWEPT.get(root, ()))


@pytest.mark.parametrize("root", ["sample", "evaluate"])
def test_a_root_key_may_bear_the_name_of_a_group_of_another_root(root):
    for value in ("0.05", "raw", "power"):
        assert compose(root, ["model=x", f"ema={value}"])["ema"] == value
    assert compose(root, ["model=x"])["ema"] == "ema" and "  ema=ema" in help_text(root, "")
    with pytest.raises(ValueError, match="ema"):
        compose(root, ["model=x", "ema.decay=0.5"])


def test_the_registry_is_what_the_leaves_name_and_all_of_it_is_there():
    def targets(node):
        if isinstance(node, dict):
            yield from ([node["_target_"]] if "_target_" in node else [])
            for value in node.values():
                yield from targets(value)

    assert set(registry()) == {target for name in LEAVES for target in targets(leaf(name))}
    for name in registry():
        assert callable(resolve_target(name, "x"))


# Mistakes on the command line: always a ValueError, always with the key

MALFORMED = {
    "foo": "foo",
    "=3": "=3",
    "foo=3": "foo: no such key",
    "+foo=3": "foo: no such key",
    "++foo=3": "foo: no such key",
    "~foo": "foo: no such key",
    "~seed": "seed: cannot be left out",
    "a.b.c=1": "a.b.c: no such key",
    "run_dir=x": "did you mean 'runs_dir'",
    "defaults=[]": "defaults: no such key",
    "_target_=os.system": "_target_: no such key",
    "hydra.run.dir=/tmp": "hydra.run.dir: no such key",
    "+hydra.launcher=x": "hydra",
    "network.chanels=3": "did you mean 'network.channels'",
    "+network.chanels=3": "network.chanels: no such key; did you mean 'channels'",
    "network.channels.x=3": "network.channels.x",
    "network.channels=abc": "network.channels='abc': expected int",
    "network.channels=1.5": "network.channels=1.5: expected int",
    "network.channels=true": "network.channels=True: expected int",
    "network.channels=null": "network.channels=None: expected int",
    "network.channels=": "network.channels='': expected int",
    "network.channels='3'": "network.channels='3': expected int",
    "network.channels=[1,2]": "network.channels",
    "network.channels={a:1}": "network.channels",
    "network.channels=[1": "network.channels=[1",
    "network.channels=1,2": "network.channels: several values",
    "network.channels=-1": "network.channels=-1: must be at least 0",
    "optimizer.lr=nan": "optimizer.lr=nan: must be a number",
    "data.horizontal_flip_prob=1.5": "data.horizontal_flip_prob=1.5: must be between 0 and 1",
    "data.batch_size=0": "data.batch_size=0: must be at least 1",
    "expert.exclude={a:1}": "expert.exclude={a:1}: cannot",
    "network.multipliers=3": "network.multipliers=3: expected Sequence[int]",
    "network.multipliers=[1,a]": "network.multipliers",
    "network=unett": "network=unett: no such option; did you mean 'unet'",
    "network@network=unet": "network@network",
    "optimizer=3": "optimizer=3: no such option",
    "optimizer={a:1}": "optimizer=",
    "optimizer.lr=fast": "optimizer.lr='fast': expected float",
    "optimizer.lr=${nope}": "optimizer.lr",
    "optimizer.lr=${optimizer.lr}": "optimizer.lr",
    'optimizer.lr="a': "optimizer.lr",
    "~optimizer._target_": "optimizer",
    "optimizer._target_=[1]": "optimizer._target_",
    "+optimizer._args_=[1]": "optimizer._args_",
    "conditioner=[text,nope]": "conditioner=nope: no such option",
    "+conditioner.foo=3": "conditioner.foo",
    "data.fields.caption=3": "data.fields",
    "+data.filters.min_sise=3": "data.filters.min_sise: no such key; did you mean 'min_size'?",
    "data.filters.min_size=large": "data.filters.min_size='large': expected",
    "data.filters.min_size=-1": "data.filters.min_size=-1: must be at least 0",
    "data.filters.ranges={score: 5}": "data.filters.ranges={'score': 5}: expected",
    "data.mixture={a: {shards: a.tar, wait: 3}}": "data.mixture.a.wait: no such key; did you mean 'weight'?",
    "data.mixture={a: {shards: a.tar, weight: much}}": "data.mixture.a.weight='much': expected float",
    "expert.node=[1,x]": "expert.node",
    "expert.node=(1,1)": "expert.node",
    "seed=abc": "seed='abc': expected int",
    "seed=range(3)": "seed: several values",
    "seed=3=4": "seed=3=4",
    "max_steps=0": "max_steps=0: must be at least 1",
    "image_size=null": "image_size=None: expected int",
    "overwrite=maybe": "overwrite='maybe': expected bool",
    "branch_optimizer=some": "branch_optimizer='some'",
    "trainer.precision=bf17": "trainer.precision='bf17'",
    "trainer.devices=abc": "trainer.devices='abc': expected ",
    "trainer.limit_val_batches=1.5": "trainer.limit_val_batches=1.5: expected int",
    "trainer.gradient_clip_val=nan": "trainer.gradient_clip_val=nan: must be a number",
    "prompt=hello": "prompt: no such key",
    "--config-name=x": "--config-name=x",
    f"seed={'[' * 500}": "seed=",
}


@pytest.mark.parametrize("override", MALFORMED, ids=lambda text: text[:30])
def test_a_malformed_override_is_a_value_error_that_names_the_key(override):
    with pytest.raises(ValueError) as caught:
        compose("config", overriding([*SMALL, override]))
    message = str(caught.value)
    assert MALFORMED[override] in message
    assert "\n" not in message and len(message) < 700


def test_an_unknown_option_lists_the_options():
    with pytest.raises(ValueError, match=r"there are: adam, adamw"):
        compose("config", ["optimizer=lamb"])


@pytest.mark.parametrize("word", ["ema=null", "~ema", "ema=", "conditioner=[]", "callback=null", "logger=null"])
def test_a_part_is_left_out_with_whatever_the_experiment_sets_in_it(word):
    tree = compose("config", [DIFFUSION, word])
    assert tree[word.strip("~").partition("=")[0]] is None
    assert tree["network"]["width"] > 0


def test_options_not_chosen_take_what_the_experiment_sets_in_them_along():
    words = ["experiment=quickstart/diffusion", "first_stage=x", "conditioner=[label]", "callback=[metrics]"]
    tree = compose("config", words)
    assert list(tree["conditioner"]) == ["label"] and list(tree["callback"]) == ["metrics"]
    with pytest.raises(ValueError, match=r"conditioner\.text: its keys are set but it is not chosen"):
        compose("config", [*words, "conditioner.text.memo_captions=3"])


@pytest.mark.parametrize("sigmas", groups()["sigmas"])
def test_noise_that_goes_by_the_sigma_schedule_takes_every_one(sigmas):
    """Whatever an experiment sets in its own schedule: it is taken over as the chosen one is, not before."""
    options = {name: yaml.safe_load((CONF / "noise" / f"{name}.yaml").read_text()) for name in groups()["noise"]}
    takers = [name for name, node in options.items() if takes(node, "sigmas")]
    assert "sampler_matched" in takers
    for noise in takers:
        words = [DIFFUSION, "schedule=linear", f"noise={noise}", f"sigmas={sigmas}"]
        tree = compose("config", words)
        assert tree["noise"]["sigmas"] == tree["sigmas"]
        assert isinstance(Parts(tree)["noise"], NoiseDistribution)
        assert compose("config", [*words, "num_steps=7"])["noise"]["sigmas"].get("num_steps", 7) == 7


def test_callback_add_is_beside_those_that_are_there():
    own = list(compose("config", [DIFFUSION])["callback"])
    tree = compose("config", [DIFFUSION, "callback_add=[latent_probe]", "callback.latent_probe.fit_steps=7"])
    assert list(tree["callback"]) == [*own, "latent_probe"] and tree["callback"]["latent_probe"]["fit_steps"] == 7
    assert list(compose("config", [DIFFUSION, "callback=[speed]", "callback_add=[metrics]"])["callback"]) == [
        "speed", "metrics",
    ]  # fmt: skip
    assert list(compose("config", [DIFFUSION, "callback=null", "callback_add=[metrics]"])["callback"]) == ["metrics"]
    for word, said in {
        "callback_add=[latent_prob]": "callback_add=latent_prob: no such option; did you mean 'latent_probe'",
        "callback_add=speed": r"callback_add=speed: no such option; several are callback_add=\[speed,",
    }.items():
        with pytest.raises(UserError, match=said):
            compose("config", [DIFFUSION, word])
    with pytest.raises(UserError, match="callback_add=speed: is in callback"):
        compose("config", [DIFFUSION, "callback=[speed]", "callback_add=[speed]"])


def test_a_part_that_is_not_there_is_left_out_without_complaint():
    assert compose("config", ["network=null", "~ema"])["network"] is None
    with pytest.raises(ValueError, match="operator: no such key"):
        compose("config", ["operator=null"])


def test_plus_experiment_is_explained():
    with pytest.raises(ValueError, match=r"write experiment=NAME without the \+"):
        compose("config", ["+experiment=quickstart/diffusion"])


def test_a_key_of_another_option_is_refused():
    with pytest.raises(ValueError, match=r"sampler\.eta: no such key"):
        compose("config", ["sampler=heun", "sampler.eta=1"])


def test_a_required_key_is_asked_for():
    with pytest.raises(ValueError, match="model: has to be given"):
        compose("sample", [])
    with pytest.raises(ValueError, match=r"data\.train: has to be given"):
        compose("config", ["data=shards"])
    assert compose("config", ["data=shards", "data.train=/a/{b,c}.tar"])["data"]["train"] == "/a/{b,c}.tar"


@pytest.mark.parametrize(
    "target", ["os.system", "torch.load", "torch.hub.load", "ldm.files.sha256", "builtins.eval", "subprocess.run", ""]
)
def test_a_target_that_conf_does_not_name_is_refused(target):
    with pytest.raises(ValueError, match=r"optimizer\._target_"):
        compose("config", [*SMALL, f"optimizer._target_={target}"])
    with pytest.raises(ValueError, match="not allowed"):
        validate({"a": [{"b": {"_target_": target}}]})
    with pytest.raises(ValueError, match="not allowed"):
        instantiate({"_target_": target}, {}, "a")


def test_a_target_hidden_in_a_new_key_is_refused():
    with pytest.raises(ValueError, match=r"network\.channels\._target_=os\.system"):
        compose("config", ["network=unet", "network.channels={_target_:os.system}"])


# Literal text


@pytest.mark.parametrize(
    "text",
    ["a, b", 'say "hi"', "it's", "a=b", "(a) [b] {c}", "${oc.env:HOME}", "${seed}", "3", "1e-3", "true", "\\",
     "'", "", " padded ", "__literal_0__", "käse 火 🦊", "a # b", "%s {0}", "[1,2]", "a\nb"],
)  # fmt: skip
def test_text_is_taken_verbatim(text):
    path = text or "x"  # an empty path is refused
    tree = compose("sample", [f"model={path}", f"prompt={text}", "seed=7"])
    assert (tree["prompt"], tree["model"], tree["seed"]) == (text, path, 7)


def test_null_is_no_prompt_and_a_tilde_is_one():
    assert compose("sample", ["model=x", "prompt=null"])["prompt"] is None
    assert compose("sample", ["model=x", "prompt=~x"])["prompt"] == "~x"


@pytest.mark.parametrize(
    "words",
    [["seed=1", "seed=2"], ["seed=1", "seed=1"], ["prompt=a", "prompt=b"], ["+seed=1", "seed=2"],
     ["sampler=heun", "~sampler"], ["sampler=heun", "sampler=euler"], ["guidance.scale=1", "++guidance.scale=2"],
     ["out=a", "out=b", "out=c"]],
    ids=" ".join,
)  # fmt: skip
def test_a_key_given_twice_is_refused(words):
    key = words[0].lstrip("+").partition("=")[0]
    with pytest.raises(ValueError, match=f"^{key} is given {len(words)} times.*give it once"):
        compose("sample", ["model=x", *words])
    with pytest.raises(ValueError, match=f"^{key} is given {len(words)} times"):
        expand_sweep(["model=x", *words])


def test_a_step_of_a_report_has_all_of_its_words_and_no_others():
    keys = ("stage", "seed", "tree")
    assert words_of_step(["seed=3", "tree=a=b.json", "stage=x"], *keys) == {
        "seed": "3",
        "tree": "a=b.json",
        "stage": "x",
    }
    for words in (["stage=x"], ["stage=x", "seed=a", "tree=b"], ["stage=x", "seed=1", "tree=b", "plain"],
                  ["stage=x", "stage=y", "seed=1", "tree=b"], ["stage=x", "seed=1", "tree=b", "jobs=2"]):  # fmt: skip
        with pytest.raises(UserError, match="stage: is of the steps that this command starts itself"):
            words_of_step(words, *keys)


def test_braces_that_the_shell_expanded_are_explained():
    words = ["data=shards", *(f"data.train=/a-{n}.tar" for n in range(6))]
    with pytest.raises(ValueError, match=r"data\.train is given 6 times; the shell expands braces that are not quoted"):
        compose("config", words)


def test_words_of_a_command_give_way_to_the_users():
    assert overriding(["a.b=1", "~logger", "c=2", "+a.b=3", "logger=null"]) == ["+a.b=3", "logger=null", "c=2"]


# Arguments that a leaf file leaves out, lists, homes


def test_every_argument_of_a_constructor_can_be_set():
    words = ["data=shards", "data.train=/a.tar", "conditioner=[label]", "trainer.benchmark=true"]
    tree = compose("config", [*words, "data.fields.caption.extension=txt", "data.fields.caption.key=null",
                              "conditioner.label.num_classes=3", "trainer.detect_anomaly=true"])  # fmt: skip
    assert tree["data"]["fields"]["caption"]["extension"] == "txt" and tree["trainer"]["detect_anomaly"] is True
    tree = compose("sample", ["model=x", "guidance=per_condition", "guidance.scales.text=2"])
    assert tree["guidance"]["scales"]["text"] == 2
    depth = {"_target_": "ldm.data.fields.Picture", "extension": "depth.png"}
    given = "={_target_:ldm.data.fields.Picture,extension:depth.png}"
    tree = compose("config", [*words, f"data.fields.depth{given}", f"derived.depth{given}"])
    assert tree["data"]["fields"]["depth"] == tree["derived"]["depth"] == depth
    for word, said in {
        "data.fields.depth.extension=txt": "there is no data.fields.depth; a new one must be given whole, data.",
        "network=own": "network=own: no such option; one of a package of your own needs plugins=[package]",
        "derived.depth={_target_:own.Depth}": "in conf/ can be built; one of a package of your own needs plugins=",
        "data.fields.caption.extention=txt": "did you mean 'data.fields.caption.extension'",
        "data.fields.caption.max_chars=many": "data.fields.caption.max_chars='many': expected int",
        "data.fields.cap.extension=txt": "data.fields.cap.extension",
        "data.filters.min_sise=3": "data.filters.min_sise: no such key; did you mean 'data.filters.min_size'",
        "data.nothing.at.all=3": "data.nothing.at.all: no such key",
    }.items():
        with pytest.raises(ValueError, match=r".*".join(map(re.escape, [said]))):
            compose("config", [*words, word])


def test_shards_may_be_a_list_and_quotes_are_the_shells(tmp_path):
    words = ["data=shards", "data.validation=/v.tar"]
    tree = compose("config", [*words, "data.train=[/a b.tar, '/c{0,1}.tar',\"/d,e.tar\"]"])
    assert tree["data"]["train"] == ["/a b.tar", "/c{0,1}.tar", "/d,e.tar"]
    odd = tmp_path / "[x,y]"
    odd.write_text("")
    assert compose("config", [*words, f"data.train={odd}"])["data"]["train"] == str(odd)
    for key, root in (("data.train", "config"), ("conditioner.text.path", "config"), ("model", "sample")):
        base = ["conditioner=[text]", "data=shards", "data.train=/a"] if root == "config" else []
        with pytest.raises(ValueError, match=f"{key} ?= is literal|{key}= is literal"):
            compose(root, overriding([*base, f"{key}='/a.tar'"]))
    assert compose("quickstart", ["prompts=[red heart,blue]"])["prompts"] == ["red heart", "blue"]


def test_a_tilde_is_the_home_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for key, root in (("runs_dir", "config"), ("first_stage", "config"), ("branch", "config"), ("model", "sample"),
                      ("out", "sample"), ("target", "sample"), ("weak_model", "sample"),
                      ("results", "sweep_f"), ("plan", "ablation"),
                      ("results", "tasks_report"), ("fashion", "tasks_report")):  # fmt: skip
        base = ["model=x"] if root == "sample" and key != "model" else []
        assert compose(root, [*base, f"{key}=~/a/b c"])[key] == "/home/me/a/b c"
        with pytest.raises(ValueError, match=f"{key}=~nosuchuser/x: .*home.*nosuchuser"):
            compose(root, [*base, f"{key}=~nosuchuser/x"])
    assert compose("tasks_report", ["fashion=123", "results=null"])["fashion"] == "123"
    assert compose("config", ["data=shards", "data.train=~/a.tar"])["data"]["train"] == "~/a.tar"  # as it was saved
    for word in ("data.train=~nosuchuser/x", "data.cache=~nosuchuser/x", "conditioner.text.path=~nosuchuser/x"):
        words = ["data=shards", "data.train=/a", "conditioner=[text]", word]
        with pytest.raises(ValueError, match=r"~nosuchuser/x: .*home"):
            compose("config", overriding(words))
    with pytest.raises(ValueError, match="braces"):
        compose("config", ["data=shards", "data.train=" + "{a," * 3000 + "}" * 3000])


def test_a_path_that_is_empty_is_a_variable_that_is_not_set():
    for word in ("first_stage=", "branch=", "runs_dir=", "run=", "++branch=", "data.train=", "data.cache="):
        with pytest.raises(ValueError, match=r"^[\w.]+=: nothing is given .* not set"):
            compose("config", ["data=shards", *(["data.train=/a"] if word != "data.train=" else []), word])
    assert compose("config", ["branch=null", "run=null"])["branch"] is None
    assert compose("sample", ["model=a", "prompt=", "negative_prompt="])["prompt"] == ""
    for root in ("sample", "evaluate", "sampler_table", "propose_split", "expert_cost", "nearest", "likelihood"):
        with pytest.raises(ValueError, match=r"^model=: nothing is given .* not set\?\); model=runs/NAME"):
            compose(root, ["model="])
    with pytest.raises(ValueError, match=r"^members=: nothing is given .* members=\[runs/a,runs/b\]"):
        compose("ensemble", ["out=e.yaml", "members="])


def test_a_list_of_paths_with_an_empty_one_is_a_variable_that_is_not_set():
    for text in ("[,runs/a]", "[runs/a,]", "['',runs/a]", "['']", "[,]"):
        with pytest.raises(ValueError, match=r"^members=.*: one of the list is empty .* not set"):
            compose("ensemble", ["out=e.yaml", f"members={text}"])
    for text in ("[]", "[ ]"):
        assert compose("ensemble", ["out=e.yaml", f"members={text}"])["members"] == []
    with pytest.raises(ValueError, match=r"one of the list is empty"):
        compose("config", ["data=shards", "data.train=[a.tar,]"])


def test_a_file_of_another_kind_is_no_run(tmp_path):
    for tree in ({"model": str(tmp_path)}, {"members": [str(tmp_path)]}):
        with pytest.raises(ValueError, match=r"^(model|members)=.*: no weights found, it is not a run's folder"):
            check_there(tree)
    for name in ("notes.txt", "run.yaml", "step_1.ema.safetensors", "config.yaml"):
        (tmp_path / name).touch()
    for tree in ({"model": f"{tmp_path}/notes.txt"}, {"models": [f"{tmp_path}/run.yaml", f"{tmp_path}/notes.txt"]}):
        with pytest.raises(ValueError, match=r"^models?=.*notes\.txt: is none of a run's folder, its weights"):
            check_there(tree)
    check_there({"model": f"{tmp_path}/run.yaml", "members": [str(tmp_path), f"{tmp_path}/step_1.ema.safetensors"]})


def test_members_and_validation_are_lists_of_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    tree = compose("ensemble", ["out=~/e.yaml", "members=[~/a b, 'runs/c=1',runs/d(2)]"])
    members = ["/home/me/a b", "runs/c=1", "runs/d(2)"]
    assert (tree["out"], tree["members"]) == ("/home/me/e.yaml", members)
    assert compose("evaluate", ["model=x", "validation=[a.tar,b.tar]"])["validation"] == ["a.tar", "b.tar"]
    with pytest.raises(ValueError, match=r"^members='runs/a': expected list"):
        compose("ensemble", ["out=e.yaml", "members=runs/a"])


def test_only_the_keys_that_are_text_are_split_off():
    literal, overrides = split_literal(["prompt=a,b", "seed=1", "prompt", "network=unet", "branch=null"])
    assert literal == {"prompt": "a,b"}
    assert overrides == ["seed=1", "prompt", "network=unet", "branch=null"]
    found = compose("tasks_report", ["overrides_of.layout=max_steps=100 seed=2"])["overrides_of"]
    assert found["layout"] == "max_steps=100 seed=2" and found["text"] is None


def test_the_precision_of_a_command_is_its_own():
    assert compose("quickstart", ["precision=32-true"])["precision"] == "32-true"
    assert compose("quickstart", [])["precision"] is None
    with pytest.raises(ValueError, match="precision='32-true': expected"):
        compose("encode", ["first_stage=x", "out=y", "precision=32-true"])
    with pytest.raises(ValueError, match="precision='fp16': expected"):
        compose("quickstart", ["precision=fp16"])


# Names of runs, and sweeps


def test_run_names():
    assert run_name(["experiment=quickstart/autoencoder"]) == "quickstart-autoencoder"
    assert run_name(["experiment=quickstart/expert", "expert.node=[1,1]"]) == "quickstart-expert-1-1"
    assert run_name(["experiment=a/b", "expert.exclude=[[3,0],[9,511]]"]) == "a-b-not-3-0-9-511"
    assert run_name(["experiment=a/b", "expert.interval={sigma:[0.5,null]}"]) == "a-b-sigma-0.5-null"
    assert run_name(["experiment=a", "optimizer.lr=1"], ["optimizer.lr=1e-4"]) == "a-lr_1e-4"
    assert run_name(["experiment=x", "expert.node=null", "expert.interval=null", "expert.exclude=null"]) == "x"
    assert run_name(["experiment=x", "expert.node=null"], ["expert.node=null"]) == "x"
    assert run_name([]) == "run"


def test_a_sweep_is_the_product_of_its_values_and_every_job_has_its_own_name():
    command = ["experiment=sweep/autoencoder", "autoencoder=f4,f8", "regularizer=kl,vq", "seed=3", "data.train=a,b.tar"]
    jobs = expand_sweep(command)
    names = [run_name(*job) for job in jobs]
    assert names == [f"sweep-autoencoder-{f}-{r}" for f in ("f4", "f8") for r in ("kl", "vq")]
    for arguments, swept in jobs:
        assert {"experiment=sweep/autoencoder", "seed=3", "data.train=a,b.tar", *swept} == set(arguments)


def test_sweeps_over_experiments_nodes_and_ranges():
    experiments = expand_sweep(["experiment=quickstart/autoencoder,quickstart/diffusion"])
    assert [run_name(*job) for job in experiments] == ["quickstart-autoencoder", "quickstart-diffusion"]
    nodes = expand_sweep(["experiment=e", "expert.node=[1,0],[1,1]"])
    assert [run_name(*job) for job in nodes] == ["e-1-0", "e-1-1"]
    assert [swept for _, swept in expand_sweep(["seed=range(3)"])] == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert expand_sweep(["seed=1", "prompt=a,b"]) == [(["prompt=a,b", "seed=1"], [])]


def test_a_sweep_that_cannot_be_read_names_the_word():
    with pytest.raises(ValueError, match="seed=1,,"):
        expand_sweep(["seed=1,,"])


# Types


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (int, [0, -3], [1.0, True, "1", None, [1]]),
        (float, [1, 0.5, float("inf")], [True, "1", None]),
        (bool, [True], [0, 1, "true", None]),
        (str, ["", "1"], [1, None, ["a"]]),
        (Path, ["a/b"], [3]),
        (int | None, [None, 3], ["3", 0.5]),
        (list[float], [[], [1, 2.5]], [1, "ab", ["a"], (1, 2)]),
        (list[list[int]], [[[1, 0], [2, 3]]], [[1, 0], [["a"]]]),
        (dict[str, int], [{}, {"a": 1}], [[], {"a": "b"}, 3]),
        (Literal["a", "b"], ["a"], ["c", None]),
        (EMA, [{"_target_": "ldm.training.ema.EMA"}], [3, "x", None, [], {"decay": 1}]),
        (EMA | None, [None], [3, "ema"]),
        (inspect.Parameter.empty, [3, None, "x"], []),
    ],
)
def test_values_are_held_to_their_annotations(annotation, good, bad):
    assert [value for value in good if not accepts(annotation, value)] == []
    assert [value for value in bad if accepts(annotation, value)] == []


def test_a_wrong_type_names_key_value_and_type():
    with pytest.raises(ValueError, match=r"ema\.decay='x': expected float"):
        validate({"ema": {"_target_": "ldm.training.ema.EMA", "decay": "x"}})
    with pytest.raises(ValueError, match=r"ema\.decy: no such key; did you mean 'decay'\? \(takes module, decay, b"):
        validate({"ema": {"_target_": "ldm.training.ema.EMA", "decy": 0.5}})
    with pytest.raises(ValueError, match=r"ema\.1: no such key"):
        validate({"ema": {"_target_": "ldm.training.ema.EMA", 1: 0.5}})


def test_evaluation_takes_several_scales_of_any_guidance_and_sampling_one():
    tree = compose("evaluate", ["model=x", "guidance.scale=[1,2.5]"])
    assert tree["guidance"] == {"scale": [1, 2.5]}, "the run's guidance"
    words = ["model=x", "guidance=autoguidance", "weak_model=runs/a, b"]
    tree = compose("evaluate", [*words, "guidance.scale=[1,2.5]", "guidance.limits.sigma_lo=0.3"])
    assert tree["guidance"]["scale"] == [1, 2.5] and tree["guidance"]["limits"]["sigma_lo"] == 0.3
    assert tree["weak_model"] == "runs/a, b" and tree["loss_guidance"] in (None, {}, [])
    assert "scale" not in compose("evaluate", words)["guidance"], "the usual ones"
    assert "num_steps" not in compose("sample", ["model=x", "sigmas=karras"])["sigmas"], "as many as the run says"
    assert compose("sample", ["model=x", "sigmas=karras", "num_steps=7"])["sigmas"]["num_steps"] == 7
    with pytest.raises(ValueError, match=r"guidance\.scale=\[1, 'a'\]: expected float"):
        compose("evaluate", [*words, "guidance.scale=[1,a]"])
    with pytest.raises(ValueError, match=r"guidance\.scale=\[1, 2\]: expected float"):
        compose("sample", [*words, "guidance.scale=[1,2]"])
    with pytest.raises(ValueError, match=r"guidance\.scale: no such key; did you mean 'scales'"):
        compose("evaluate", ["model=x", "guidance=per_condition", "guidance.scales={text:2}"])


# Objects


def test_instantiate_takes_from_the_tree_first_and_asks_for_the_rest_by_name():
    asked = []

    class Offered(dict):
        def __contains__(self, name):
            asked.append(name)
            return super().__contains__(name)

    offered = Offered(max_steps=100)
    node = {"_target_": "ldm.training.optim.cosine", "final_factor": 0.5}
    factor = instantiate(node, offered, "lr")
    assert asked == ["max_steps", "warmup_steps", "start_factor"]
    assert factor(100) == 0.5
    assert instantiate([1, {"a": "b"}, None], offered, "x") == [1, {"a": "b"}, None]


def test_a_part_that_nobody_gives_is_asked_for():
    node = {"_target_": "ldm.diffusion.precond.Eps"}
    with pytest.raises(ValueError, match=r"precond \(Eps\) needs schedule: choose one with schedule=\.\.\."):
        instantiate(node, {}, "precond")
    with pytest.raises(ValueError, match=r"lr \(cosine\) needs max_steps: set lr\.max_steps"):
        instantiate({"_target_": "ldm.training.optim.cosine"}, {}, "lr")


def test_a_part_may_be_null_only_where_its_annotation_says_so():
    task = {"_target_": "ldm.training.callbacks.checkpoint.Checkpoint"}
    with pytest.raises(ValueError, match="needs folder"):
        instantiate(task, {"folder": None}, "callback.checkpoint")
    without = {"_target_": "ldm.diffusion.experts.Expert", "node": None}
    assert instantiate(without, {}, "expert").node == (0, 0)


def test_partial_targets_wait():
    made = instantiate({"_target_": "ldm.training.ema.EMA", "_partial_": True, "decay": 0.5}, {}, "ema")
    assert isinstance(made, partial) and made.keywords == {"decay": 0.5}


# Trees that come with a checkpoint are data


def test_a_saved_tree_is_read_back_as_it_was(tmp_path):
    tree = compose("config", [DIFFUSION, "run=a: b # c", "ema.decay=1e-7"])
    (tmp_path / "config.yaml").write_text(dump(tree))
    assert load_tree(tmp_path / "config.yaml") == tree
    assert tree["ema"]["decay"] == 1e-7 and tree["guidance"]["limits"]["sigma_lo"] == 0.0


def test_a_tree_that_is_not_there_is_named(tmp_path):
    (tmp_path / "config.yaml").mkdir()
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match=r"config\.yaml: no such file, which every run's folder has"):
            load_tree(folder / "config.yaml")


def test_text_in_a_saved_tree_is_not_interpolated(tmp_path):
    (tmp_path / "config.yaml").write_text("a: ${oc.env:HOME}\nb: '&x *x'\nc: say &hi to *me\n")
    assert load_tree(tmp_path / "config.yaml") == {"a": "${oc.env:HOME}", "b": "&x *x", "c": "say &hi to *me"}


BOMB = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    "text",
    [
        f"a: &a [1]\n{BOMB}",
        "a: ['q', &x [1, 2], *x]",
        '{"a": &x {b: 1}, "c": {<<: *x}}',
        "a: !!python/object/apply:os.system [echo]",
        "a: !!python/name:os.system",
        "a: {_target_: os.system}",
        "a: [{b: {_target_: torch.load, f: x}}]",
        "a: {_target_: [1]}",
        "_target_: subprocess.run",
        "- a",
        "just text",
        "",
        "a: [1",
        "[a]: 1\n{b: c}: 2",
        "a: " + "[" * 1_500,
        "a: " + "x" * 1_100_000,
        "a: \x00",
    ],
    ids=lambda text: text[:20],
)
def test_a_hostile_or_broken_tree_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError):
        load_tree(tmp_path / "config.yaml")


def test_a_tree_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="not a run's configuration"):
        load_tree(tmp_path / "config.yaml")


def test_an_entry_point_tells_mistakes_of_users_in_a_line_and_shows_where_others_come_from(monkeypatch, capsys):
    def ended_by(error: Exception) -> None:
        def main(arguments: list[str]) -> int:
            raise error

        guarded(main)

    monkeypatch.setattr("ldm.config.entry.hide_on_terminal", lambda: None)
    monkeypatch.delenv("LDM_TRACEBACK", raising=False)
    for error in (UserError("a.b=3: no"), FileNotFoundError("c")):
        with pytest.raises(SystemExit) as caught:
            ended_by(error)
        assert caught.value.code == 2 and capsys.readouterr().err.startswith(f"error: {error} (")
    with pytest.raises(ValueError, match="torch's own"):
        ended_by(ValueError("torch's own"))
