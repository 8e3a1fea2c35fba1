"""What conditions add to the code of an exported sample.py (sample_script.py): imports, condition(), an example."""

LOAD_IMPORT = "from safetensors.torch import load_file"
BERT_IMPORT = "from diffusers.pipelines.latent_diffusion import LDMBertModel"
TEXTS = """\
given = condition(["a red fox", "a blue house"])
null = condition(["", ""])"""
LABELS = '''
embedding = load_file(FOLDER / "conditioner" / "model.safetensors")["embedding.weight"]


def condition(label):
    """Numbers of classes [B] -> one token each."""
    return {"encoder_hidden_states": embedding[label][:, None]}
'''
LAYOUTS = '''
bert = LDMBertModel.from_pretrained(FOLDER / "bert").eval()


@torch.no_grad()
def condition(layout):
    """Numbers of a layout's tokens [B, N] -> tokens."""
    return {"encoder_hidden_states": bert(layout)[0]}
'''
CAPTIONS = '''
bert = LDMBertModel.from_pretrained(FOLDER / "bert").eval()
tokenizer = AutoTokenizer.from_pretrained(FOLDER / "tokenizer")


@torch.no_grad()
def condition(captions):
    """Texts -> tokens, padding among them."""
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length={max_tokens}, return_tensors="pt")
    return {{"encoder_hidden_states": bert(ids.input_ids)[0]}}
'''
MASKED_TEXTS = '''
text_encoder = AutoModel.from_pretrained(FOLDER / "text_encoder").eval()
tokenizer = AutoTokenizer.from_pretrained(FOLDER / "tokenizer")


@torch.no_grad()
def condition(captions):
    """Texts -> tokens, and which of them are words."""
    ids = tokenizer(captions, padding=True, truncation=True, max_length={max_tokens}, return_tensors="pt")
    tokens = text_encoder(input_ids=ids.input_ids, attention_mask=ids.attention_mask).last_hidden_state
    return {{"encoder_hidden_states": tokens, "encoder_attention_mask": ids.attention_mask.bool()}}
'''
EMBEDDINGS = '''

def condition(embeddings):
    """Embeddings [B, N, width] made beforehand are the tokens."""
    return {"encoder_hidden_states": embeddings}
'''
CONCAT = '''

def condition(image):
    """Small images [B, 3, h, w] in [-1, 1], of the size of the latents."""
    return {"concat": image}
'''
MAPS = '''
mapper = load_file(FOLDER / "conditioner" / "model.safetensors")["channel_mapper.weight"]


def condition(classes):
    """Maps of numbers of classes [B, H, W]."""
    maps = F.one_hot(classes, {num_classes}).permute(0, 3, 1, 2).float()
    for _ in range({halvings}):
        maps = F.interpolate(maps, scale_factor=0.5, mode="bilinear")
    return {{"concat": F.conv2d(maps, mapper)}}
'''
HOLES = '''

@torch.no_grad()
def condition(image, mask):
    """Images [B, 3, H, W] in [-1, 1] and masks [B, 1, H, W], 1 where the hole is.

    Of what decode() gives keep the hole alone: decode(z).where(mask >= 0.5, image).
    """
    latent = vae.encode(image.where(mask < 0.5, -1.0)).{encoded} * vae.config.scaling_factor
    small = F.interpolate(mask, latent.shape[2:], mode="nearest") * 2 - 1
    return {{"concat": torch.cat([latent, small], dim=1)}}
'''
