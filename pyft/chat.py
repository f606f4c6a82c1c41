"""Talk to a model you tuned, with the template, base and quantisation it was trained with.

    python -m pyft.chat OUTPUT_DIR [--prompt TEXT] [--system TEXT] [--temperature T] [--top-p P]
    [--max-new-tokens N]

OUTPUT_DIR is a run, a stage, a checkpoint, an adapter or any Hugging Face folder. With --prompt the answer
alone goes to standard output; everything else goes to standard error. Without it, lines are read from
standard input: /new forgets the conversation, /system TEXT starts a new one with that system text, /quit or
the end of input leaves. Ctrl-C ends an answer; at the prompt it leaves. A model that was only pretrained
continues the text.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import secrets
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyft.command import run_command
from pyft.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pyft.data.chat.chat_template import ChatTemplate

_HELP = "/new: forget the conversation   /system TEXT: set the system text   /quit: leave"
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Chat:
    """A model, its tokenizer and template, and the conversation so far.

    Args:
        model: in evaluation mode.
        tokenizer: the one it was trained with.
        template: bound to the tokenizer; None continues plain text.
        system: system text, or None.
        temperature: 0 is greedy.
        top_p: share of probability sampled from.
        max_new_tokens: limit of an answer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        template: ChatTemplate | None,
        *,
        system: str | None,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
    ) -> None:
        self._model, self._tokenizer, self._template = model, tokenizer, template
        self._options = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
        self.system = system
        self._turns: list[dict[str, str]] = []

    def clear(self) -> None:
        """Forget the conversation; the system text stays."""
        self._turns = []

    def answer(self, prompt: str, write: Callable[[str], None]) -> bool:
        """Answer a prompt, and remember both.

        Args:
            prompt: the user's text.
            write: takes the answer's pieces as they come.

        Returns:
            Whether the model ended its answer by itself. A Ctrl-C ends it too, and is raised after the part
            that was written is remembered.

        Raises:
            ConfigError: the conversation is longer than the model's positions.
        """
        from pyft.model.generate import generate
        from pyft.model.stream import TextStream

        turn = {"role": "user", "content": prompt}
        ids, stops = self._encode(turn)
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit is not None and len(ids) >= limit:
            raise ConfigError(
                f"the conversation has {len(ids)} tokens, the model takes {limit} (prompt): "
                "shorten it, or start a new one with /new"
            )
        stream = TextStream(lambda part: self._tokenizer.decode(part, skip_special_tokens=True), write)
        try:
            # Each answer has a seed of its own: sampling leaves torch's random state as it was.
            _, stopped = generate(
                self._model,
                ids,
                stop_token_ids=stops,
                on_token=stream.put,
                seed=secrets.randbits(63),
                **self._options,
            )
        finally:
            stream.end()
            self._turns += [turn, {"role": "assistant", "content": stream.text}]
        return stopped

    def _encode(self, turn: dict[str, str]) -> tuple[list[int], list[int]]:
        """Encode the prompt as in training; return its ids, and those that end an answer."""
        from pyft.data.chat.bind import encode_text_prompt

        if self._template is None:
            eos = self._tokenizer.eos_token_id
            return encode_text_prompt(self._tokenizer, turn["content"]), [] if eos is None else [eos]
        head = [{"role": "system", "content": self.system}] if self.system else []
        ids = self._template.encode_prompt(self._tokenizer, [*head, *self._turns, turn])
        return ids, self._template.stop_token_ids(self._tokenizer)


def main(options: argparse.Namespace) -> int | None:
    """Chat as the command line says.

    Args:
        options: parsed arguments.

    Returns:
        An exit code, None for 0.

    Raises:
        ConfigError: options out of range.
    """
    problems = []
    if not 0 <= options.temperature < float("inf"):
        problems.append(f"--temperature is {options.temperature}: give 0 (most likely token) or more")
    if not 0 < options.top_p <= 1:
        problems.append(f"--top-p is {options.top_p}: give a share above 0, at most 1")
    if options.max_new_tokens < 1:
        problems.append(f"--max-new-tokens is {options.max_new_tokens}: give 1 or more")
    if options.prompt is not None and not options.prompt.strip():
        problems.append("--prompt is empty: give a text, or leave it out to chat")
    if problems:
        raise ConfigError(problems)
    chat = _build(options)
    if options.prompt is None:
        _converse(chat)
        return None
    stopped = chat.answer(options.prompt, _write)
    _write("\n")
    if not stopped:
        _say(f"(cut at --max-new-tokens {options.max_new_tokens})")
    return None


def _build(options: argparse.Namespace) -> Chat:
    from pyft.run.result import find_result

    result = find_result(options.output_dir)

    from pyft.data.chat.bind import trained_template
    from pyft.model.architecture import quiet_transformers
    from pyft.model.device import best_device
    from pyft.model.fitting import check_vocabulary
    from pyft.model.restore import load_result, load_result_tokenizer

    quiet_transformers()
    tokenizer = load_result_tokenizer(result)
    template = trained_template(result.mode, result.template, tokenizer)
    base = f" on {result.base}" if result.base is not None else ""
    quantised = f" in {result.quantization}" if result.base is not None and result.quantization else ""
    _say(f"{result.folder}{base}{quantised}")
    if template is None:
        _say("(no chat template: the model continues your text)")
    model = load_result(result, device=best_device())
    check_vocabulary(model, len(tokenizer))
    system = options.system if options.system is not None else result.system
    if template is not None and system:
        _say(f"system: {system}")
    return Chat(
        model,
        tokenizer,
        template,
        system=system,
        temperature=options.temperature,
        top_p=options.top_p,
        max_new_tokens=options.max_new_tokens,
    )


def _converse(chat: Chat) -> None:
    """Read lines and answer them until the end of input."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        # Gives input() line editing, of wide characters too; where it is missing, lines are still read.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
        _say(_HELP)
    while True:
        line = _read_line(interactive)
        if line is None or line in ("/quit", "/exit"):
            return
        if not line:
            continue
        if line.startswith("/"):
            _say(_command(chat, line))
            continue
        try:
            if not chat.answer(line, _write):
                _write(" ...")
        except KeyboardInterrupt:
            _write(" ...")  # the answer ends, the conversation goes on
        except ConfigError as error:
            _say("\n".join(error.messages))
            continue
        _write("\n")


def _read_line(interactive: bool) -> str | None:
    """One stripped line, None at the end of input."""
    if not interactive:
        line = sys.stdin.readline()
        return line.strip() if line else None
    try:
        return input("> ").strip()
    except EOFError:
        _write("\n")
        return None


def _command(chat: Chat, line: str) -> str:
    """Carry out a line that begins with a slash; what to say about it."""
    name, _, rest = line.partition(" ")
    if name == "/new":
        chat.clear()
        return "(a new conversation)"
    if name == "/system":
        chat.system = rest.strip() or None
        chat.clear()
        return f"(a new conversation, system: {chat.system or 'none'})"
    return f"no such command {name}. {_HELP}"


def _write(piece: str) -> None:
    # A model may write what a terminal would obey; a file gets the answer as it is.
    shown = _CONTROLS.sub(lambda found: repr(found[0])[1:-1], piece) if sys.stdout.isatty() else piece
    print(shown, end="", flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pyft.chat", description="Talk to a model you tuned.")
    parser.add_argument(
        "output_dir", metavar="OUTPUT_DIR", help="a run, a stage, a checkpoint, an adapter or a model folder"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="answer only this, then exit")
    parser.add_argument(
        "--system", metavar="TEXT", help="system text (default: that of the training questions)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the most likely token, more samples (default: 0)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the likeliest tokens that make up this share (default: 1.0)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=512,
        metavar="N",
        help="longest answer, in tokens (default: 512)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main, _parser()))
