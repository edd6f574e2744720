"""timm's networks in plain PyTorch, compiled and in bfloat16: what a Keras network beside them has to reach."""

from collections.abc import Callable

NAMES = {"ResNet50": "resnet50", "DINOv2-B": "vit_base_patch14_dinov2.lvd142m"}


def training(name: str, size: int, batch: int, classes: int, steps: int) -> Callable[[], float]:
    """So many compiled steps of Adam on one ready batch; the loss is read at the end."""
    import torch

    model = _model(name, size, classes).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-4, fused=torch.cuda.is_available())
    photos, labels = _photos(size, batch), torch.arange(batch, device=_device()) % classes
    forward = torch.compile(model)

    def run() -> float:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(_device(), torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(forward(_floats(photos)), labels)
            loss.backward()
            optimizer.step()
        loss.item()
        return steps * batch

    return run


def embedding(name: str, size: int, batch: int, batches: int) -> Callable[[], float]:
    """So many compiled forward passes of one ready batch; the last one's result is read."""
    import torch

    model = _model(name, size, 0).eval()
    photos, forward = _photos(size, batch), torch.compile(model)

    def run() -> float:
        with torch.inference_mode(), torch.autocast(_device(), torch.bfloat16):
            for _ in range(batches):
                found = forward(_floats(photos))
        found.float().cpu()
        return batches * batch

    return run


def _model(name: str, size: int, classes: int):
    import timm
    import torch

    options: dict = {"img_size": size} if name.startswith("DINO") else {}
    model = timm.create_model(NAMES[name], pretrained=False, num_classes=classes, **options)
    return model.to(_device()).to(memory_format=torch.channels_last)


def _photos(size: int, batch: int):
    import torch

    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=_device()).to(
        memory_format=torch.channels_last
    )


def _floats(photos):
    return (photos.float() - 127.5) / 64


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
