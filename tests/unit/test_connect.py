"""What a server's words mean."""

from __future__ import annotations

import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from app.errors import IndexUnavailableError
from app.index.connect import unavailable


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
        ResponseError("BUSY Redis is busy running a script."),
        ResponseError("max number of clients reached"),
    ],
)
def test_what_passes_is_unavailability(error: ResponseError) -> None:
    with pytest.raises(IndexUnavailableError), unavailable():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        ResponseError("BUSYGROUP Consumer Group name already exists"),
        ResponseError("Error running script: 'OOM ' is no number"),
    ],
)
def test_faults_of_ours_stay_loud(error: ResponseError) -> None:
    with pytest.raises(ResponseError), unavailable():
        raise error
