"""A latent diffusion model as a pipeline: conditions, guidance, the scheduler's steps, the first stage's decoder."""

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

ENCODERS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "bert", "image_encoder")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class LatentPipeline(DiffusionPipeline):
    """Draws images. `process` is how the scheduler's x is made of data and noise: "chain" (its variance is kept),
    "sigma" (x0 + sigma noise) or "flow" (between the two). The network is told the scheduler's timestep, times
    `noise_scale`; for "sigma" that many times ln(sigma). Without a vae it models pixels.
    """

    _optional_components = ["unet", "transformer", "vae", "conditioner", *ENCODERS]  # noqa: RUF012
    model_cpu_offload_seq = "text_encoder->text_encoder_2->bert->image_encoder->conditioner->unet->transformer->vae"

    def __init__(
        self, scheduler, unet=None, transformer=None, vae=None, conditioner=None, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, bert=None, image_encoder=None, process="chain", noise_scale=1.0,
        channels=4, downsampling=8,
        image_size=256, latents_mean=0.0, latents_std=1.0, num_inference_steps=25, guidance_scale=1.0,
    ):  # fmt: skip
        super().__init__()
        self.register_modules(
            scheduler=scheduler, unet=unet, transformer=transformer, vae=vae, conditioner=conditioner,
            text_encoder=text_encoder, tokenizer=tokenizer, text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2,
            bert=bert, image_encoder=image_encoder,
        )  # fmt: skip
        self.register_to_config(
            process=process, noise_scale=noise_scale, channels=channels, downsampling=downsampling,
            image_size=image_size, latents_mean=latents_mean, latents_std=latents_std,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
        )  # fmt: skip

    @torch.no_grad()
    def __call__(
        self, prompt=None, negative_prompt=None, class_labels=None, batch_size=1, num_inference_steps=None,
        guidance_scale=None, height=None, width=None, generator=None, latents=None, output_type="pil",
        return_dict=True, experts=None, boundaries=(0.0,), **fields,
    ):  # fmt: skip
        """Images for prompts (a text or several) and class_labels (numbers), or `batch_size` of an unconditional model.

        Other conditions come as `fields`: low_resolution [B, 3, h, w], image [B, 3, H, W] with mask [B, 1, H, W] (1
        where the hole is) and style [B, 3, H, W], all in [-1, 1], segmentation [B, H, W] (numbers), embeddings
        [B, N, D], layout [B, N]. `latents`: standard normal noise [B, channels, h, w]. None is the model's own.
        output_type: pil, np, pt (in [0, 1]) or latent. `experts` are pipelines that predict in its place, the k-th at
        noise of `boundaries[k]`, which decrease, and above, as `_level` gives it.
        """
        prompt = [prompt] if isinstance(prompt, str) else prompt
        class_labels = [class_labels] if isinstance(class_labels, int) else class_labels
        fields = {"prompt": prompt, "class_labels": class_labels, **fields}
        fields = {name: value for name, value in fields.items() if value is not None}
        num = len(next((value for value in (*fields.values(), latents) if value is not None), range(batch_size)))
        negative = [negative_prompt] * num if isinstance(negative_prompt, str) else negative_prompt
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        sides = [(side or self.config.image_size) // self.config.downsampling for side in (height, width)]

        predict = [own._bound(fields, num, sides, scale, negative) for own in experts or [self]]
        self._set_steps(num_inference_steps or self.config.num_inference_steps)
        shape = (num, self.config.channels, *sides)
        noise = randn_tensor(shape, generator, self._execution_device) if latents is None else latents
        x = noise.to(self._execution_device, torch.float32) * self._first_scale()
        for number, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            inputs = x if self.config.process == "flow" else self.scheduler.scale_model_input(x, t)
            told = self.scheduler.sigmas[number].log() if self.config.process == "sigma" else t
            place = next(k for k, boundary in enumerate(boundaries) if self._level(number, t) >= boundary)
            x = self.scheduler.step(predict[place](inputs, told), t, x).prev_sample
        images = x if output_type == "latent" else self._finished(self._decoded(x), fields, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _bound(self, fields, num, sides, scale, negative):
        """The network under its conditions and guidance, (x, what the noise is told by) -> its output."""
        given = self._conditions(fields, num, sides)
        free = None if scale == 1 else self._conditions(fields, num, sides, True, negative)

        def predict(x, told):
            told = told * self.config.noise_scale
            output = self._predict(x, told, *given)
            return output if free is None else torch.lerp(self._predict(x, told, *free), output, scale)

        return predict

    def _level(self, number, t):
        """The noise at a step: the timestep of a chain, else sigma or the time of flow."""
        return t if self.config.process == "chain" else self.scheduler.sigmas[number]

    def _predict(self, x, told, keywords, concat):
        network = self.unet or self.transformer
        x = x if concat is None else torch.cat([x, concat.to(x)], dim=1)
        keywords = {k: v if v.dtype == torch.bool else v.to(network.dtype) for k, v in keywords.items()}
        return network(x.to(network.dtype), told.to(x.device), **keywords).sample.float()

    def _set_steps(self, num_steps):
        """The levels that the model was sampled with."""
        if self.config.process == "flow":  # from where the training ended, which is not quite 1
            times = torch.linspace(1, 1 / num_steps, num_steps, dtype=torch.float64)
            sigmas = (times / (1 - times)).clamp(max=1e4 / self.scheduler.config.shift)
            self.scheduler.set_timesteps(sigmas=(sigmas / (1 + sigmas)).tolist(), device=self._execution_device)
        else:
            self.scheduler.set_timesteps(num_steps, device=self._execution_device)

    def _first_scale(self):
        return self.scheduler.sigmas[0].item() if self.config.process == "sigma" else 1.0

    # Conditions

    def _conditions(self, fields, num, sides, left_out=False, negative=None):
        """Keywords of the network, and channels for its input; `left_out`: of what guidance compares with."""
        parts = {} if self.conditioner is None else self.conditioner.config.conditions
        guidable = [p for p in parts.values() if p["droppable"] or (p["field"] == "prompt" and negative)]
        if left_out and not guidable:
            raise ValueError("guidance_scale: the training left out no condition to guide by; guidance_scale=1 is none")
        given = {}
        for name, part in parts.items():
            value = fields.get(part["field"])
            if left_out and part in guidable:
                value = negative if part["field"] == "prompt" else None
            elif value is None and part["field"] and not part["droppable"]:
                raise ValueError(f"{part['field']}: this model has to be given one")
            if value is None and part.get("null") is not None:  # what its encoder makes of nothing
                null = part["null"]
                value = [null] * num if isinstance(null, str) else torch.full((num, part["max_tokens"]), null)
            if value is not None:
                given[name] = self._encoded(part, value, fields)
        return self.conditioner(given, num, sides) if parts else ({}, None)

    def _encoded(self, part, value, fields):
        device = self._execution_device
        if part["field"] == "image":
            hole = fields["mask"].to(device).float()
            latent = self._encode_image(value.to(hole).where(hole < 0.5, -1.0))
            return torch.cat([latent, F.interpolate(hole, latent.shape[2:], mode="nearest") * 2 - 1], dim=1)
        if "encoder" not in part:
            return value
        encoder = getattr(self, part["encoder"])
        if part["field"] == "style":
            return encoder(pixel_values=_for_clip(value.to(device), encoder.config.image_size)).image_embeds
        if "tokenizer" not in part:
            tokens = encoder(value.to(device))[0]
            return tokens.float(), torch.ones(tokens.shape[:2], dtype=torch.bool, device=device)
        padding = "max_length" if part["see_padding"] else True
        options = {"padding": padding, "truncation": True, "max_length": part["max_tokens"], "return_tensors": "pt"}
        text = getattr(self, part["tokenizer"])(list(value), **options).to(device)
        if part["see_padding"]:
            return encoder(text.input_ids)[0].float(), torch.ones_like(text.input_ids, dtype=torch.bool)
        mask = text.attention_mask.bool()
        return encoder(text.input_ids, attention_mask=text.attention_mask)[0].float() * mask[..., None], mask

    # Latents

    def _whitening(self, like):
        mean, std = (torch.tensor(v, device=like.device) for v in (self.config.latents_mean, self.config.latents_std))
        return mean.view(-1, 1, 1), std.view(-1, 1, 1)

    def _encode_image(self, image):
        mean, std = self._whitening(image)
        if self.vae is None:
            return (image - mean) / std
        encoded = self.vae.encode(image.to(self.vae.dtype))
        z = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (z.float() * self.vae.config.scaling_factor - mean) / std

    def _decoded(self, z):
        mean, std = self._whitening(z)
        images = z * std + mean
        if self.vae is not None:
            images = self.vae.decode((images / self.vae.config.scaling_factor).to(self.vae.dtype)).sample.float()
        return images.clamp(-1, 1)

    def _finished(self, images, fields, output_type):
        """Images of an output_type; where a hole is given they keep what is not in it."""
        if "mask" in fields:
            hole, image = fields["mask"].to(images), fields["image"].to(images)
            images = images.where(hole >= 0.5, image)
        return VaeImageProcessor().postprocess(images, output_type=output_type)


def _for_clip(image, size):
    """The middle square of an image [B, 3, H, W] in [-1, 1], as CLIP takes it: [B, 3, size, size]."""
    side = min(image.shape[2:])
    top, left = ((length - side) // 2 for length in image.shape[2:])
    square = image[:, :, top : top + side, left : left + side].float()
    small = F.interpolate(square, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
    mean, std = (torch.tensor(values, device=image.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return ((small + 1) / 2 - mean) / std
