"""One training run: the step, its state, its epochs, its checkpoints and its records.

What each object owns, in the order in which train.py meets them:

    RunStart      start.py      the tag, the options, and the checkpoint to begin from; not used once the epochs run
    RunLists      run_lists.py  the opened lists and their classes
    Engine        engine.py     the network, the optimizer, the averages of the weights, and the number of steps so far.
                                setup.py builds it from the options: StepSettings are its numbers, Parts its objects
    RunLength     length.py     where the run ends, and the schedule; with --hours a TimedLength of hours.py
    TrainingRun   run.py        the run's files, signals, saving, and going back after a divergence. RunSettings are
                                what it takes from the options, RunFacts the lists and the precision
    RunState      state.py      the epochs that are done, their scores, and the position in an epoch that was cut
    EpochTracker  epoch.py      the sums of one epoch, and where in it the run may save and stop
    RunRecorder   recorder.py   metrics.csv, TensorBoard's files and the pictures; only the first process has one

TrainingRun.save puts a checkpoint together, from the `state_dict` of Engine, RunState and others.
"""
