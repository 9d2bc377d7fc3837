"""A thousand clients at once, each with an open stream."""

from __future__ import annotations

import asyncio

import pytest
from running_server import GREEDY, PATIENCE_S, RunningServer, TinyFiles, raw_completion

from loratory.server.run import raise_open_files


async def read_all(address: tuple[str, int], count: int) -> list[bytes]:
    """``count`` streams, opened before any is read."""
    opened = []
    for index in range(count):
        reader, writer = await asyncio.open_connection(*address)
        model = ("tiny", "a0", "a1")[index % 3]
        writer.write(raw_completion(GREEDY | {"prompt": f"{index}", "model": model, "stream": True}))
        opened.append((reader, writer))

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        found = await asyncio.wait_for(reader.readuntil(b"data: [DONE]\n\n"), 10 * PATIENCE_S)
        writer.close()
        return found

    return await asyncio.gather(*[read(*each) for each in opened])


@pytest.mark.slow
def test_a_thousand_streams_are_open_at_once(tiny: TinyFiles) -> None:
    raise_open_files()
    engine = {"num_gpu_blocks": 4000, "max_num_seqs": 256, "max_loras": 2}
    with RunningServer(tiny.settings(engine=engine)) as running:
        with running.held():
            quiet = running.server.limits

            async def opened() -> list[bytes]:
                reading = asyncio.create_task(read_all(running.address, 1000))
                await asyncio.to_thread(running.until, lambda: quiet.in_progress == 1000)
                running._holding = False
                return await reading

            answers = asyncio.run(opened())
        assert len(answers) == 1000
        for answer in answers:
            assert answer.startswith(b"HTTP/1.1 200") and answer.count(b'"finish_reason":"length"') == 1
        running.until(running.idle)
