"""The text of sample.py in an exported folder, for models that no pipeline of diffusers takes.

It needs torch, diffusers and, for texts, transformers; nothing of this package.
"""

from dataclasses import dataclass
from string import Template


@dataclass(frozen=True)
class Script:
    """What a condition adds: imports, code that defines condition(), and lines that make `given` and `null` of two."""

    imports: str
    code: str
    example: str


_FRAME = Template('''"""Samples this model with diffusers: python sample.py writes two images beside it.

From other code: sample() takes standard normal noise [B, $channels, h, w] and what condition() makes.
"""

$standard

$imports

FOLDER = Path(__file__).parent
${load}unet = $unet.from_pretrained(FOLDER / "unet").eval()
vae = $vae.from_pretrained(FOLDER / "vae").eval()
scheduler = DDIMScheduler.from_pretrained(FOLDER / "scheduler")
$code

def predict(x, t, concat=None, **tokens):
    """What the network says of x [B, $channels, h, w] at timestep t."""
    return unet(x if concat is None else torch.cat([x, concat], dim=1), t, **tokens).sample


@torch.no_grad()
def sample(noise, given, null=None, scale=$scale, num_steps=$num_steps):
    """Latents from noise for what is given; guided away from `null` where there is one. num_steps divides $length."""
    scheduler.set_timesteps(num_steps)
    x = noise
    for t in scheduler.timesteps:
        output = predict(x, t, **given)
        if null is not None:
            free = predict(x, t, **null)
            output = free + scale * (output - free)
        x = scheduler.step(output, t, x).prev_sample
    return x


@torch.no_grad()
def decode(z):
    """Latents -> images [B, 3, H, W] in [-1, 1]."""
    return vae.decode(z / vae.config.scaling_factor).sample.clamp(-1, 1)


if __name__ == "__main__":
$example
    noise = torch.randn(2, $channels, $side, $side, generator=torch.Generator().manual_seed(0))
    images = decode(sample(noise, given, null))
    for number, image in enumerate(VaeImageProcessor().postprocess(images, output_type="pil")):
        image.save(FOLDER / f"sample_{number}.png")
''')


_LOAD = """\
spec = spec_from_file_location("{module}", FOLDER / "unet" / "{module}.py")
{module} = module_from_spec(spec)
spec.loader.exec_module({module})
{name} = {module}.{name}
"""


def text(script: Script, unet: str, unet_module: str, vae: str, **facts: float) -> str:
    """sample.py; `facts` are channels and side of a latent, scale, num_steps and the schedule's length.

    `unet_module` is a file beside the U-Net that defines its class, or '' for one of diffusers.
    """
    classes = sorted({"DDIMScheduler", vae, *([] if unet_module else [unet])})
    standard = ["from pathlib import Path"]
    imports = [
        "import torch",
        f"from diffusers import {', '.join(classes)}",
        "from diffusers.image_processor import VaeImageProcessor",
        *script.imports.splitlines(),
    ]
    load = ""
    if unet_module:
        standard.insert(0, "from importlib.util import module_from_spec, spec_from_file_location")
        load = _LOAD.format(module=unet_module, name=unet)
    indented = "\n".join(f"    {line}" for line in script.example.strip().splitlines())
    return _FRAME.substitute(
        facts,
        unet=unet,
        vae=vae,
        load=load,
        standard="\n".join(standard),
        imports="\n".join(sorted(imports, key=lambda line: (line.startswith("from"), line))),
        code=f"{script.code.rstrip()}\n",
        example=indented,
    )
