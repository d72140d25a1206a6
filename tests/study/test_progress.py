from heldout.study import Study, higher_is_better, rich_progress, run_study


def run(arm, seed, profile):
    if arm["fails"]:
        raise ValueError("[bold]not markup[/bold]")
    return {"score": seed}


def test_progress_goes_to_stderr_and_names_failures(capsys):
    study = Study(
        slug="demo",
        arms={"[red]good": {"fails": False}, "bad": {"fails": True}},
        run=run,
        metrics={"score": higher_is_better},
        seeds=2,
    )
    with rich_progress() as progress:
        run_study(study, progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "4/4" in captured.err
    assert "2 failed" in captured.err
    assert "[bold]not markup[/bold]" in captured.err
