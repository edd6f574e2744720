"""The result in words, whatever part of it there is."""

from finished import START, gathered

from landmarks.report import words


def test_the_result_is_one_line(work, recipe):
    run = gathered(recipe)
    line, start = words.result(run)
    scores = run.scores["recognition"]["private"]
    shown = run.judged["recognition"].query("half == 'private'")["shown"].map(len)
    assert line.startswith(
        f"{scores['top1']:.1%} of the {(shown > 0).sum()} private test photos that show a landmark are"
    )
    assert f"GAP {scores['gap']:.3f}; photos of the same landmark" in line and line.endswith(".")
    assert "of 0.900, by the first weights, whitened, 0.800: +0.100 ± 0.020; training paid." in start


def test_a_part_is_rounded_as_the_table_has_it(work, recipe):
    run = gathered(recipe)
    run.scores["recognition"]["private"]["top1"] = 77 / 80
    assert f"{77 / 80:.3f}" == "0.963" and words.result(run)[0].startswith("96.3% of ")


def test_without_scores_it_says_what_there_is(work, recipe):
    run = gathered(recipe)._replace(scores={"recognition": {}, "retrieval": {}, "calibration": {}}, start={})
    photos, queries = (len(run.judged[task]) for task in ("recognition", "retrieval"))
    assert words.result(run) == [
        f"{photos} test photos have an answer; {queries} have neighbours in the index; nothing tells which are right."
    ]
    assert words.tiles(run.scores) == []


def test_the_public_half_stands_in_for_a_private_one_that_has_none(work, recipe):
    run = gathered(recipe)
    public = {"public": run.scores["recognition"]["public"], "private": {"gap": None, "top1": None}}
    assert "public test photos" in words.result(run._replace(scores={**run.scores, "recognition": public}))[0]
    assert words.tiles({"recognition": public})[0].private is None


def test_a_start_that_is_not_whole_is_not_told():
    assert words.first_weights({}) == words.first_weights({**START, "gain": None}) == []
    assert len(words.first_weights(START)) == 1


def test_what_the_model_beside_reaches_alone_is_told(work, recipe):
    run = gathered(recipe)
    settings = {**run.settings, "run": {**run.settings["run"], "beside": "small-frozen"}}
    beside = {"recognition": {"public": {"gap": 0.5, "top1": None}, "private": {"gap": 0.25}}, "retrieval": {}}
    said = words.result(run._replace(settings=settings, beside=beside))[-1]
    assert said == "The model beside, small-frozen, alone: GAP private 0.250, public 0.500."
    assert words.result(run)[-1] != said
