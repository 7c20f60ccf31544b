"""YAML, key=value words, the reference's flags; every error at once, with the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.errors import FedMoEError
from fedmoe.help import TOPICS, help_text
from fedmoe.loading import (
    CONFIGS,
    from_run_config,
    leaves,
    load_points,
    load_settings,
    settings_from,
    to_run_config,
)
from fedmoe.modalities import GROUPS
from fedmoe.settings import Settings
from fedmoe_server.planning.plan import located

REFERENCE_FLAGS = (
    "--num_rounds 30 --client_fraction 0.2 --local_epochs 1 --learning_rate 1e-3 --batch_size 32 --gating_init 0.1 "
    "--partial_aggregation_warmup_rounds 20 --num_negatives 100 --max_seq_len 50 --seed 7 --save_dir checkpoints/a "
    "--data_dir data --data_file ml100k_ratings_processed.dat --visual_file clip.pt --text_file text.pt "
    "--use_negative_sampling false --init_bias_for_sasrec --sasrec_bias_value 2.0"
)


def test_every_flag_of_the_reference_is_understood() -> None:
    settings, warnings = load_settings(REFERENCE_FLAGS.split())
    assert settings.federation.num_rounds == 30
    assert settings.federation.warmup_rounds == 20
    assert settings.training.learning_rate == 1e-3
    assert settings.training.loss == "softmax"
    assert settings.model.gate_init == 0.1
    assert settings.data.data_file == Path("ml100k_ratings_processed.dat")
    assert settings.data.dataset == "file"
    assert settings.modalities["visual"].file == "clip.pt"
    assert settings.modalities["text"].file == "text.pt"
    assert [warning.split()[0] for warning in warnings] == ["--init_bias_for_sasrec", "--sasrec_bias_value"]


@pytest.mark.parametrize(
    "words", [["num_rounds=5"], ["federation.num_rounds=5"], ["--num-rounds=5"], ["--num_rounds", "5"]]
)
def test_spellings_of_a_key(words: list[str]) -> None:
    assert load_settings(words)[0].federation.num_rounds == 5


def test_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("federation: {strategy_parameters: {eta: 1e-3, tau: 1E+2}}")
    parameters = load_settings([str(path), "strategy_parameters.beta_1=5e-1"])[0].federation.strategy_parameters
    assert parameters == {"eta": 1e-3, "tau": 100.0, "beta_1": 0.5}


def test_words_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("name: own\nmodel: {dim: 32}\nfederation: {shared: all}\n")
    settings, _ = load_settings([str(path), "dim=16"])
    assert (settings.name, settings.model.dim, settings.federation.shared) == ("own", 16, GROUPS)


def test_all_errors_are_reported_at_once_with_the_nearest_key() -> None:
    words = ["nun_rounds=3", "model.dimm=3", "learning_rate=-1", "heads=0", "shared=[gat]", "stray", "dropout=1"]
    with pytest.raises(FedMoEError) as caught:
        load_settings(words)
    message = str(caught.value)
    for part in (
        "7 settings are wrong",
        "'nun_rounds' - did you mean 'num_rounds'?",
        "'model.dimm' - did you mean 'model.dim'?",
        "training.learning_rate = -1: input should be greater than 0",
        "model.heads = 0",
        "federation.shared.0 = 'gat'",
        "'stray' is no setting",
        "model.dropout = 1",
    ):
        assert part in message


def test_an_unknown_key_in_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("federation: {num_round: 3}\n")
    with pytest.raises(FedMoEError, match=r"unknown key 'federation.num_round' - did you mean 'federation.num_rounds'"):
        load_settings([str(path)])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["ml-100"], "cannot read the settings file 'ml-100'.*did you mean 'ml-100k'"),
        (["--num_rounds"], "--num_rounds needs a value"),
        (["items=5"], r"data\.synthetic\.items"),
        (["dataset=file"], "needs data_file"),
        (["memory_size=20", "memory_refresh=15"], "must be a multiple"),
        (["dim=63"], r"heads \(2\) must divide dim \(63\)"),
        (["name=a/b"], "name = 'a/b'"),
    ],
)
def test_bad_words(words: list[str], complaint: str) -> None:
    with pytest.raises(FedMoEError, match=complaint):
        load_settings(words)


@pytest.mark.parametrize("text", ["[1, 2", "- a\n- b\n"])
def test_bad_yaml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(FedMoEError, match="bad.yaml"):
        load_settings([str(path)])


def test_another_strategy_starts_without_the_default_ones_parameters() -> None:
    settings, _ = load_settings(["strategy=fedavg"])
    assert settings.federation.strategy_parameters == {}
    assert settings.federation.server_schedule == "constant"
    default = Settings().federation.strategy_parameters
    settings, _ = load_settings(["strategy_parameters.eta=0.5"])
    assert settings.federation.strategy_parameters == {**default, "eta": 0.5}


def test_a_modality_needs_a_line(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("modalities: {audio: {file: audio.npy}, visual: {norm: false}}\n")
    settings, _ = load_settings([str(path), "modalities.audio.norm=false", "modalities.visual.file=pictures.npy"])
    assert {name: (own.file, own.norm) for name, own in settings.named_modalities.items()} == {
        "visual": ("pictures.npy", False),
        "text": ("titles", True),
        "audio": ("audio.npy", False),
    }
    assert from_run_config(to_run_config(settings)) == settings


def test_a_modality_that_is_null_is_gone() -> None:
    settings, _ = load_settings(["modalities.text=null", "modalities.audio.expert_parameters.width=3"])
    assert list(settings.named_modalities) == ["visual", "attributes", "audio"]
    assert settings.named_modalities["audio"].expert_parameters == {"width": 3}
    assert from_run_config(to_run_config(settings)) == settings
    assert load_settings(["text_file=null"])[0].named_modalities["text"].file is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["visual", "text", "attributes"]),
        (["ml-1m", "modalities.text.norm=false"], ["visual", "text", "attributes"]),
        (["modalities.attributes=null"], ["visual", "text"]),
        (["modalities.visual.norm=false", "modalities.text.norm=false"], ["visual", "text", "attributes"]),
        (["visual_file=pictures.npy"], ["visual", "text"]),
        (["text_file=null"], ["visual", "text"]),
        (["text_file=noise", "modalities.attributes.file=noise"], ["visual", "text", "attributes"]),
        (["quick"], ["visual", "text"]),
        (["data_file=clicks.csv"], ["visual", "text"]),
        (["data_file=clicks.csv", "item_file=items.csv"], ["visual", "text", "attributes"]),
    ],
)
def test_films_have_attributes_beside_titles(words: list[str], expected: list[str]) -> None:
    assert list(load_settings(words)[0].named_modalities) == expected


def test_the_references_spellings_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(
        "data: {visual_file: pictures.npy, text_file: texts.npy, item_id_file: ids.txt}\n"
        "model: {norm_visual: false, norm_semantic: false, experts: attention}\n"
        "federation: {warmup: all, shared: [embedding, visual_expert, semantic_expert], decoy_rows: 0}\n"
    )
    settings, _ = load_settings([str(path), "text_file=noise"])
    assert {name: (own.file, own.norm) for name, own in settings.named_modalities.items()} == {
        "visual": ("pictures.npy", False),
        "text": ("noise", False),
    }
    assert [settings.expert_of(name) for name in settings.modalities] == ["feature_attention", "item_attention"]
    assert settings.federation.shared == ("embedding", "experts.visual", "experts.text")
    assert list(load_settings(["modalities.semantic.file=noise"])[0].modalities) == ["visual", "text"]
    assert load_settings(["semantic_expert=matching"])[0].named_modalities["text"].expert == "matching"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["modalities.audio.fil=a.npy"], "'modalities.audio.fil' - did you mean 'file'"),
        (["modalities.entropy.file=a.npy"], "a modality's name is a word in lower case"),
        (["modalities.audio.expert=matchin"], "did you mean 'matching'"),
        (["shared=[experts.audio]"], "'experts.audio' is no modality's expert: modalities are visual, text"),
        (["dataset=ml-1m", "data_file=own.csv"], "dataset 'ml-1m' does not read data_file: set dataset to file"),
        (["item_id_file=ids.txt"], "no modality has a file"),
        (["users=30"], "set dataset to synthetic"),
        (["momentum=0.5", "optimizer=adam"], "momentum is for sgd"),
    ],
)
def test_what_another_setting_makes_meaningless_is_an_error(words: list[str], complaint: str) -> None:
    with pytest.raises(FedMoEError, match=complaint):
        load_settings(words)


@given(st.integers(1, 10**6), st.floats(1e-6, 1e3), st.lists(st.sampled_from(GROUPS), unique=True))
def test_settings_travel_unchanged(rounds: int, rate: float, shared: list[str]) -> None:
    settings, _ = load_settings([f"num_rounds={rounds}", f"learning_rate={rate!r}", f"shared={shared}"])
    assert from_run_config(to_run_config(settings)) == settings


def test_flwr_run_names_a_config_and_overrides() -> None:
    settings = from_run_config({"config": "ml-100k", "overrides": "num_rounds=3 dim=16", "settings": ""})
    assert (settings.federation.num_rounds, settings.model.dim) == (3, 16)


@pytest.mark.parametrize("config", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_shipped_config_is_valid(config: str) -> None:
    assert all(settings.name for settings in load_points([config])[0].values())


def test_help_fits_a_screen_a_topic_and_covers_every_setting() -> None:
    assert len(help_text([]).splitlines()) <= 30
    texts = {topic: help_text([topic]) for topic in TOPICS}
    assert all(len(text.splitlines()) <= 40 for text in texts.values())
    assert all(len(line) <= 120 for text in texts.values() for line in text.splitlines())
    for key, _ in leaves():
        assert any(f"  {key} = " in text for text in texts.values())
    with pytest.raises(FedMoEError, match="did you mean 'model'"):
        help_text(["modle"])


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "ml-100k"),
        (["dataset=ml-1m"], "ml-1m"),
        (["data_file=my clicks.v2.csv"], "my-clicks"),
        (["data_file=clicks.csv", "name=mine"], "mine"),
    ],
)
def test_a_run_is_called_after_its_data(words: list[str], name: str) -> None:
    assert load_points(words)[0][""].name == name


def test_paths_mean_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a Ray cluster that is joined works in folders of its own
    for name in ("clicks.csv", "audio.npy"):
        Path(name).touch()
    words = [
        "data_file=clicks.csv",
        "modalities.audio.file=audio.npy",
        "modalities.visual.file=inside.npy",
        "data_dir=.",
    ]
    found = located(load_settings(words)[0])
    assert (found.data.data_file, found.data.data_dir) == (tmp_path / "clicks.csv", tmp_path)
    files = {name: own.file for name, own in found.named_modalities.items()}
    assert files == {"visual": "inside.npy", "text": "titles", "audio": str(tmp_path / "audio.npy")}


def test_what_an_earlier_version_wrote_down_means_what_it_did() -> None:
    written = load_settings(["ml-100k", "modalities.attributes=null"])[0].model_dump(mode="json")
    assert settings_from(written).model.memory_floor == 4.0
    del written["model"]["memory_floor"], written["modalities"]["attributes"]
    found = settings_from(written)
    assert found.model.memory_floor == 0.0
    assert list(found.named_modalities) == ["visual", "text"]
