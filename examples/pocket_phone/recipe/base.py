"""Train the tiny Qwen2-VL: first its vision tower, then its language model with the tower frozen.

Stage 1 regresses each merged visual token onto the word embeddings of what its cell shows. Stage 2 freezes the vision
tower and trains the language model on the exercises of `curriculum`.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from examples.pocket_phone.apps import APPS
from examples.pocket_phone.glyphs import GLYPHS
from examples.pocket_phone.recipe import layout, tokenizer
from examples.pocket_phone.recipe.batches import Encoded, Features, answer_loss, collate, encode, pixels
from examples.pocket_phone.recipe.curriculum import Curriculum
from examples.pocket_phone.recipe.evaluate import exact
from examples.pocket_phone.recipe.state import Progress, State
from examples.pocket_phone.screens import HOME, Screen

EYE_STEPS, EYE_BATCH, EYE_RATE = 170, 40, 2e-3
STEPS, BATCH, RATE, WARMUP = 1200, 64, 2e-3, 60
CHUNK, SEQUENCE_BATCH = 10, 24
EASY_STEPS, RAMP_STEPS = 350, 500
POOL = 3200
SAVE_EVERY, CHECKED = 100, 200
EMBEDDING_STD = 0.5
SHARPNESS = 2.0
"""Initial scale of W_Q relative to W_K in the heads that attend from a word to its glyph."""
MARK = 0.5
"""Weight of the "something is here" mark in a glyph's visual token."""
KINSHIP = 0.6
"""Share of embedding variance that a word has in common with the same word after a space."""


def rotation(seed: int) -> Tensor:
    """Return the fixed orthogonal matrix [hidden, hidden] from word space to visual token space."""
    generator = torch.Generator().manual_seed(seed)
    turned: Tensor = torch.linalg.qr(torch.randn(layout.HIDDEN, layout.HIDDEN, generator=generator)).Q
    return turned


def new_model(seed: int) -> Qwen2VLForConditionalGeneration:
    """Build the model with half of its attention heads initialised to look for things on the screen.

    A glyph's visual token will be R e, with e the embedding of its word and R a rotation. The first half of the heads
    starts with W_K = K R^T and W_Q = K, so that a word attends to its own glyph and not to itself, and with W_V = V R^T
    and W_O = V^T, so that it fetches what it sees in word space. The other half starts at random.
    """
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**layout.qwen2_vl_config())).float()
    text, head = model.model.language_model, layout.HIDDEN // layout.HEADS
    groups, turn = layout.HEADS // layout.KV_HEADS, rotation(seed)
    with torch.no_grad():
        text.embed_tokens.weight.copy_(_embeddings())
        text.norm.weight.fill_(0.25)
        for layer in text.layers:
            attention = layer.self_attn
            look, other, fetch, copy = (torch.randn(head, layout.HIDDEN) / math.sqrt(layout.HIDDEN) for _ in range(4))
            queries = [SHARPNESS * look] * groups + [torch.randn_like(other) / math.sqrt(layout.HIDDEN)] * groups
            attention.q_proj.weight.copy_(torch.cat(queries))
            attention.k_proj.weight.copy_(torch.cat([look @ turn.T, other]))
            attention.v_proj.weight.copy_(torch.cat([fetch @ turn.T, copy]))
            attention.o_proj.weight.copy_(0.25 * torch.cat([fetch] * groups + [copy] * groups).T)
            for weight in (attention.q_proj.weight, attention.o_proj.weight):
                weight.add_(torch.randn_like(weight) * 0.02)
    return model


def _embeddings() -> Tensor:
    """Return random embeddings [vocabulary, hidden] in which "bag" and " bag" are correlated."""
    vocabulary = tokenizer.build().get_vocab()
    table = torch.randn(len(vocabulary), layout.HIDDEN)
    for word, number in vocabulary.items():
        if (spaced := vocabulary.get("\u0120" + word)) is not None:
            table[spaced] = KINSHIP**0.5 * table[number] + (1 - KINSHIP) ** 0.5 * table[spaced]
    return table * EMBEDDING_STD


def train(folder: Path, state: State, seed: int, device: str, progress: Progress) -> None:
    """Train the base model and write its checkpoint folder."""
    model = new_model(seed).to(device)
    eyes = state.load("eyes")
    if eyes is None:
        _train_eyes(model, rotation(seed), random.Random(f"{seed}/eyes"), progress)
        state.save("eyes", model.state_dict())
    else:
        model.load_state_dict(eyes)
    _train_language(model, state, seed, progress)
    folder.mkdir(parents=True, exist_ok=True)
    layout.write_files(folder, layout.qwen2_vl_config())
    layout.save_weights(folder, model.state_dict())


def concept_targets(model: Qwen2VLForConditionalGeneration, turn: Tensor) -> dict[str, Tensor]:
    """Return the target vector [hidden] of each concept's visual token.

    A glyph is both of its name's tokens, "bag" and " bag", so that it can be matched and copied; an app likewise.
    Glyphs carry an extra mark: a word that finds its glyph on the screen then differs from one that only finds itself.
    """
    table = model.get_input_embeddings().weight.detach()
    vocabulary = tokenizer.build()

    def vector(name: str) -> Tensor:
        ids = vocabulary.encode(name).ids + vocabulary.encode(" " + name).ids
        total = table[ids].sum(0)
        scaled = total * (EMBEDDING_STD * math.sqrt(table.shape[1]) / torch.linalg.vector_norm(total))
        seen: Tensor = turn.to(table.device) @ scaled
        return seen

    targets = {"": 0.3 * vector("."), f"@{HOME}": vector("house")}
    for app in APPS.values():
        targets[f"@{app.name}"] = vector(app.display_name)
    mark = table[tokenizer.build().token_to_id("<|vision_pad|>")]
    for name in GLYPHS:
        targets[name] = vector(name) + MARK * mark
    return targets


def _concepts(screen: Screen) -> list[str]:
    """Return the concept of each of a screen's 20 tokens; the whole bar shows the app."""
    return ["@" + concept[1:] if concept.startswith("=") else concept for concept in screen.concepts()]


def _train_eyes(model: Qwen2VLForConditionalGeneration, turn: Tensor, rng: random.Random, progress: Progress) -> None:
    targets = concept_targets(model, turn)
    vision = model.model.visual
    optimiser = torch.optim.AdamW(vision.parameters(), lr=EYE_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, EYE_RATE, EYE_STEPS, pct_start=0.1)
    for step in progress.track("base: eyes", EYE_STEPS):
        pool = Curriculum(EYE_BATCH, rng)
        screens = rng.sample(pool.screens, EYE_BATCH)
        patches, grids = pixels(screens)
        output = vision(patches.to(model.device), grid_thw=grids.to(model.device)).pooler_output
        expected = torch.stack([targets[name] for screen in screens for name in _concepts(screen)])
        loss = nn.functional.mse_loss(output, expected) / EMBEDDING_STD**2
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        progress.say(step, loss=loss.item())


def _train_language(model: Qwen2VLForConditionalGeneration, state: State, seed: int, progress: Progress) -> None:
    model.model.visual.requires_grad_(False)
    curriculum = Curriculum(POOL, random.Random(f"{seed}/pool"))
    features = Features(model)
    features.add(curriculum.screens)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _rate)
    start = 0
    if (saved := state.load("language")) is not None:
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        start = saved["step"]
    for step in progress.track("base: language", STEPS, start):
        if step == start or step % CHUNK == 0:
            chunk = _draw(curriculum, step // CHUNK, seed)
        rows = chunk[step % CHUNK]
        loss = answer_loss(model, collate(model, rows, features))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        progress.say(step, loss=loss.item())
        if (step + 1) % SAVE_EVERY == 0:
            curriculum.reseed(random.Random(f"{seed}/check"))
            right = exact(model, [encode(curriculum.step()) for _ in range(CHECKED)], features)
            progress.note(f"base step {step + 1}: loss {loss.item():.3f}, exercises exact {right:.1%}")
            saved = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            state.save("language", {**saved, "schedule": schedule.state_dict()})


def _draw(curriculum: Curriculum, number: int, seed: int) -> list[list[Encoded]]:
    """Return the batches of `CHUNK` steps: rows of similar lengths together; the last batch holds sequences."""
    rng = random.Random(f"{seed}/{number}")
    curriculum.reseed(rng, ease=min(1.0, max(0.0, 1 - (number * CHUNK - EASY_STEPS) / RAMP_STEPS)))
    rows = sorted((encode(curriculum.step()) for _ in range((CHUNK - 1) * BATCH)), key=lambda row: len(row.ids))
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    rng.shuffle(batches)
    return [*batches, [encode(curriculum.sequence()) for _ in range(SEQUENCE_BATCH)]]


def _rate(step: int) -> float:
    """Return the fraction of the peak rate: linear warm-up, then a cosine down to a twentieth."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, STEPS - WARMUP)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
