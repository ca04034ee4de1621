"""The text of the comparison's page, with places for its tables."""

INTRODUCTION = """# Does SSVQ pay?

SSVQ against vector quantization (VQ), masked vector quantization (MVQ) and learned
uniform quantization (UQ, LSQ) at equal stored bits, codebooks, masks and steps
included. All methods see the same batches for the same number of steps; learning rates
are tuned per method on a validation split. All on 2 CPU cores, float32.

The page, its tables and plots are made by `python -m experiments.comparison` from the
JSON files beside it, and those by the commands below, in this order, which start from
nothing (`DIR` is the folder of tensorflow-datasets; every run resumes):

    options="--data-dir DIR --results experiments/results"
    python -m experiments.train experiments/configs/deit_96_cifar10.py $options
    python -m experiments.unfold ../shared/models/mobilenet_v2_100.safetensors \\
        runs/mobilenet_v2_100_unfolded.safetensors --data-dir DIR
    for config in cifar10_rates cifar10_mvq cifar10_thresholds cifar10_headline \\
        cifar10_bits cifar10_ablation deit_tiny_cifar10 few_images_rates few_images; do
      python -m experiments.compress experiments/configs/$config.py $options
    done
    python -m experiments.dominance --data-dir DIR

The intervals are of 95 % over the test images; differences are taken image by image on
the same images, which makes theirs narrower. Minutes are those of the clock; other work
ran beside some runs.
"""
ACCOUNT = """## What agrees with the paper, and what does not

Points of top-1 between methods, after fine-tuning, beside the paper's on ImageNet
(DeiT-Tiny at 1.5 bits). Here a small DeiT on CIFAR-10: 10 epochs at 1.25 and 1.5 bits,
three epochs at 2 and 3.

{compared}

And convolutional networks for ImageNet with 700 images, beside the paper's with all of
them (at 16 to 18x, EfficientNet-Lite and MobileNet-V2):

{few}

**What agrees.**

- Learning the signs is what SSVQ gives. With fixed signs it is no better than VQ; with
  learned ones it beats VQ and MVQ wherever those lose something, by more the fewer the
  bits are. At 1.25 bits it keeps what VQ keeps at 2.
- Why it does, too: a codeword of VQ follows the few of its blocks that have large
  gradients and hardly the many others, and learned signs let those others move
  ([below](#gradient-dominance)).
- Of the signs' learning rate and latent scale only the ratio counts, and it matters:
  ten times more or less costs one to three points.

**What does not.**

- The gaps are a fraction of the paper's, as there is little to win: VQ loses {vq_more}
  points here at 1.5 bits, 25 on ImageNet. Ten classes ask less of a network than a
  thousand, narrow as it is. So 1.25 bits were added, where VQ loses {vq_fewer}.
- Fixed signs are not as good as VQ at 1.5 bits and below, but worse: 64 codewords for
  four signed weights are worth more than 16 for eight magnitudes and a bit for every
  sign, before fine-tuning already. At 2 and 3 bits they are equal or better.
- Freezing gives nothing, at any interval, vote or rate
  ([below](#what-each-part-gives)). It is a remedy for signs that keep flipping, and
  here hardly any do: {frozen} of the signs pass a threshold when they are checked.
  Lower thresholds freeze more and lose accuracy. Ten times the rate makes a quarter of
  the signs flip and costs three points, and freezing does not win them back. The
  paper's differences between intervals and votes, half a point to a point, are below
  what 10,000 images tell apart.
- Uniform quantization at 2 bits loses nothing in ten epochs: SSVQ pays below 2 bits,
  where uniform quantization cannot go.
"""
FLOAT = """## The float network

A comparison says something only where compression hurts. So: a DeiT of 6 blocks, 96
wide, with 3 heads, patch 8, on CIFAR-10 (45,000 images to train, 5,000 to validate,
10,000 to test; shifts of 4 pixels and flips), trained for {epochs} epochs until nothing
moves: in the last ten epochs {last} on the validation split. **{test} %** on the test
images. {minutes} minutes: `{command}`.

The kernels of its blocks, 96 % of its weights, are what is compressed below.
"""
HEADLINE = """## At 1.5 and 1.25 bits

The paper's 10 epochs. "Before" is before fine-tuning, "to VQ" the difference to VQ
after it; "flipped" and "frozen" are the signs that differ from those of the float
network in the end, and that were frozen. The paper's numbers are those of DeiT-Tiny on
ImageNet.

{more}

At 1.5 bits VQ costs less than three points here, so the same at 1.25:

{fewer}

One run: ± {half} points. {minutes} minutes: `{command}`.

![validation accuracy and signs over the epochs](curves.png)
"""
BITS = """## Accuracy against bits

Three epochs each. The float network fine-tuned alike: {float} %.

{table}

{minutes} minutes: `{command}`.

![accuracy against compression ratio](pareto.png)
"""
ABLATION = """## What each part gives

At 1.5 bits; test accuracy in %, three epochs where nothing else is said.

{epochs}

How often signs are frozen in a run, and at what. The paper's numbers are for DeiT-Tiny
on ImageNet, in 12,500 steps.

{interval}

The learning rate of the latents, without and with freezing; and their scale: only their
ratio should count.

{rate}

{minutes} minutes: `{command}`.
"""
DOMINANCE = """## Gradient dominance

Mean cosine between the gradient of a block's own weights and where the block is moved:
by its codeword's gradient before fine-tuning, and in an epoch of fine-tuning, signs
included. The paper, for MobileNet-V2 under VQ: 0.66 for the 5 % of the blocks with the
largest gradients, 0.26 for the 60 % with the smallest; here of each codeword's blocks.
Blocks of VQ have 4 weights, those of SSVQ 8: between random directions cosines are
larger in fewer dimensions.

{table}

`{command}`.
"""
EXACT = """## DeiT-Tiny's exact shape

A checkpoint with timm's names, 64.0 % on CIFAR-10, through compression, one epoch of
fine-tuning, export and reload (compared bit for bit). No comparison: the network is far
too large for its task.

{table}

{minutes} minutes: `{command}`.
"""
FEW = """## Few images

700 images of `imagenet_sample` without labels, whose float outputs are matched for five
epochs; 300 held out. "Same" is agreement with the float network's first class; all in
%. Pointwise kernels and the classifier are compressed by the method, depthwise kernels
and the stem to 8 bits; the ratio is the whole network's. The networks may have seen all
these images in training, and MobileNet-V2's weights are 8-bit already: an 8-bit
baseline, no float one. Its batch norms had been folded; it got some with the moments of
the 700 images (`python -m experiments.unfold`), as without any VQ, MVQ and SSVQ end at
chance at 1.5 bits. There is one image per class: none of the classes tested is among
the 700. 300 images: ± 5 points. Rates are those that are best for EfficientNet.

{tables}

{minutes} minutes: `{command}`.

![accuracy against bits with few images](few_images.png)
"""
RATES = """## Learning rates

One epoch each at 1.5 bits (UQ at 2), by the 5,000 validation images. The first rate is
that of all that is not compressed; the second that of codebooks, of steps (in units of
the step), or of learned signs, whose codebooks have the first.

{table}

{minutes} minutes: `{command}`.
"""
FEW_RATES = """## Learning rates with few images

EfficientNet-Lite0 at 1.5 bits (UQ at 2), 500 of the 700 images to learn from and 200 to
choose by, without labels: by agreement with the float network (± 7 points: only large
differences count). The first rate is that of all that is not compressed; the second
that of codebooks, of steps, or of learned signs, whose codebooks have the first. SSVQ
and UQ, which have a latent for each weight, learn the 500 images by heart: the lower
their loss on them, the less they agree with the float network on others. Signs that are
not learned, at a rate of 0, do as well as the best.

{table}

{minutes} minutes: `{command}`.
"""
MASKS = """## Masks of MVQ

At 1.5 bits, one epoch each with rates of 0.003.

{table}

{minutes} minutes: `{command}`.
"""
THRESHOLDS = """## Thresholds of freezing

Three epochs each, learned signs with the best rates.

{table}

{minutes} minutes: `{command}`.
"""
