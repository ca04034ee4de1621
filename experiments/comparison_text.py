"""The text of the comparison's page, with places for its tables."""

INTRODUCTION = """# Does SSVQ pay?

SSVQ against vector quantization (VQ), masked vector quantization (MVQ) and learned
uniform quantization (UQ, LSQ) at nearly equal stored bits: codebooks, masks and steps
are counted, and what is stored exactly is in every table. All methods see the same
batches for the same number of steps. Learning rates were tuned per method at 1.5 bits
(UQ: 2) on a validation split; other bits take the same, but for [3 and
4](#3-and-4-bits), and for UQ and MVQ with [few images](#few-images). Nothing was chosen
by test images, but for two decisions there; one [at 3
bits](#learning-rates-at-3-bits) was taken after some had been seen. All on 2 CPU cores,
float32.

Intervals are of 95 % over the test images, for the networks trained here: other seeds
would move them, too. Differences are taken image by image on the same images, between
means where there are several seeds. Among so many intervals, one or two miss by chance.
Minutes are wall-clock time; other work ran beside some runs. How to make all this
again: [commands](#commands).
"""
COMMANDS = """## Commands

They make the JSON files beside this page, in this order; every run resumes. `DIR` is
the folder of tensorflow-datasets; the networks are timm's, as safetensors. The last one
makes page, tables and plots. It does not renew the words.

    options="--data-dir DIR --results experiments/results"
    python -m experiments.train experiments/configs/deit_96_cifar10.py $options
    python -m experiments.unfold ../shared/models/mobilenet_v2_100.safetensors \\
        runs/mobilenet_v2_100_unfolded.safetensors --data-dir DIR
    for config in cifar10_rates cifar10_mvq cifar10_thresholds cifar10_headline \\
        cifar10_bits cifar10_3_bits_rates cifar10_3_bits cifar10_ablation \\
        deit_tiny_cifar10 few_images_rates few_images; do
      python -m experiments.compress experiments/configs/$config.py $options
    done
    python -m experiments.dominance --data-dir DIR
    python -m experiments.comparison

All together {hours} hours.
"""
ACCOUNT = """## What agrees with the paper, and what does not

**In short.** With a whole data set to fine-tune on, SSVQ with learned signs beats VQ
and MVQ below 3 bits: by {learned_more} points over VQ at 1.5 bits and {learned_fewer}
at 1.25 after ten epochs, which is {back_more} and {back_fewer} of what VQ loses.
Freezing the signs adds nothing to that. With only 700 images its signs cannot be
learned: VQ is as good or better from 1.5 to 3 bits; uniform quantization is far below
both at 2. With the whole data set and ten epochs uniform quantization loses
nothing at 2 bits; below, it cannot go.

Points of top-1 between methods, after fine-tuning, beside the paper's on ImageNet
(DeiT-Tiny at 1.5 bits). Here a small DeiT on CIFAR-10, at 3 bits [trained
anew](#3-and-4-bits):

{compared}

And convolutional networks for ImageNet with 700 images, beside the paper's with all of
them (at 16 to 18x, EfficientNet-Lite and MobileNet-V2):

{few}

**What agrees.**

- Learning the signs is what SSVQ gives: it beats VQ and MVQ at 1.25, 1.5 and 2 bits. At
  3 bits, where VQ loses less than a point, the three cannot be told apart, nor UQ.
  Training longer widens the gap at 1.5 bits: VQ hardly improves from three epochs to
  ten, learned signs do.
- Of what VQ loses, learned signs win back {back_more} at 1.5 bits. In the paper it is
  about 7 of 25 points, with freezing 12 to 15.
- Fewer bits, yet better: learned signs at 1.25 bits are {fewer_bits} points above VQ at
  1.5, after ten epochs.
- With fixed signs SSVQ is as good as VQ, and no better: at 1.5 bits nothing can be told
  apart after ten epochs, at 2 and 3 after three. At 1.25 bits it is worse, and before
  fine-tuning at 1.5, too: both spend 12 bits on 8 weights there, VQ on two of 64 signed
  codewords, SSVQ on one of 16 magnitudes and on 8 signs. VQ's choice reconstructs
  better.
- Learned signs let blocks with small gradients move where these say, which VQ's
  codewords do not: in an epoch, cosines of {cosine} instead of {cosine_vq}
  ([below](#gradient-dominance)). That much fits the paper's reason.
- Of the signs' learning rate and latent scale only the ratio counts. It matters: a
  tenth costs {tenth} points, ten times {tenfold}.

**What does not.**

- The gaps are a fraction of the paper's in points, as VQ loses {vq_more} points here at
  1.5 bits, 25 on ImageNet. Probably ten classes ask less of a network than a thousand,
  although this one is narrow. We therefore also tested 1.25 bits, where VQ loses
  {vq_fewer}.
- Freezing gains nothing: {freezing} points at 1.5 bits with three seeds, and as little
  at any interval and with either vote ([below](#what-each-part-gives)), where a point,
  as between the paper's best and worst, would have shown. There is little for it to do:
  with the threshold that is best, {frozen} of the signs are frozen in the end, nearly
  all after the sixth of ten epochs; {flipped} have flipped. Lower thresholds freeze up
  to 11 %, and lose. Freezing is meant to stop signs that flip back and forth; at ten
  times the rate {tenfold_flipped} of them flip, and freezing (at the same threshold)
  does not win back what that costs. The intervals here are 8 to 87 steps of a thousand,
  the paper's 100 to 1,000 of many more.
- As in the paper a codeword's gradient agrees with its large blocks several times as
  much as with its small ones, but at a third of the paper's level. The same gradients
  with random signs give nearly the same figures: their sizes explain them.
- Uniform quantization at 2 bits is {uniform} points from the float network after ten
  epochs, better than anything at 1.5 bits. (SSVQ at 2 bits had three epochs, as had UQ
  beside it.)
- With 700 images SSVQ loses {few_vq} points to VQ at 1.5 bits on EfficientNet-Lite0.
  Its gain is in the signs, and these cannot be learned from so few: {few_flipped} of
  them flip, at the rate that is best; larger rates flip more and do worse on other
  images ([below](#learning-rates-with-few-images)). So it is SSVQ with nearly fixed
  signs, which reconstructs worse at few bits, and 70 steps do not make up for it. With
  more bits it is about as good as VQ, and better for MobileNet-V2 at 4. It is above UQ
  at 2 and 3 bits, and for MobileNet-V2 at 4. MVQ all but fails at 1.5 bits, as UQ does
  at 2: that SSVQ is far above them there is not the paper's small advantage. At 2 bits
  MVQ is as good as SSVQ, at 3 below it for MobileNet-V2.
"""
FLOAT = """## The float network

A comparison says something only where compression hurts. So: a DeiT of 6 blocks, 96
wide, with 3 heads, patch 8, on CIFAR-10 (45,000 images to train, 5,000 to validate,
10,000 to test; shifts of 4 pixels and flips), trained for {epochs} epochs until
accuracy levels off: in the last ten epochs {last} on the validation split. **{test} %**
on the test images. {minutes} minutes: `{command}`.

The kernels of its blocks, 96 % of its weights, are what is compressed below.
"""
HEADLINE = """## At 1.5 and 1.25 bits

The paper's 10 epochs. Accuracy before and after fine-tuning (one run: ± {half} points),
of every seed, and its difference from VQ's. Flipped: signs that end different from the
float network's; frozen: signs frozen by the end. The paper's numbers are those of
DeiT-Tiny on ImageNet.

{more}

At 1.5 bits VQ loses less than three points here, so the same at 1.25:

{fewer}

{minutes} minutes: `{command}`.

![validation accuracy and signs over the epochs](curves.png)
"""
BITS = """## Accuracy against bits

Three epochs each. The float network fine-tuned alike: {float} %. Codecs are
(codewords, block), MVQ's with the weights kept as (N, M), UQ's (bits). Codebooks are
stored in float16, MVQ's and those marked so in int8. [3 and 4 bits](#3-and-4-bits) are
in the plot, but a comparison of its own.

{table}

{minutes} minutes: `{command}`.

![points lost against compression ratio](pareto.png)
"""
THREE_BITS = """## 3 and 4 bits

Three epochs each, with rates [tuned at 3 bits](#learning-rates-at-3-bits). The float
network is another one: the same training, but on another machine, which rounds in
another way. It has {before} % of the test images, fine-tuned alike {float} %. So only
"minus float32" compares these rows with those above.

{table}

{minutes} minutes: `{command}`.
"""
ABLATION = """## What each part gives

At 1.5 bits; test accuracy in % (each ± {half}), three epochs where nothing else is
said. Ten epochs are those of the headline's first seed.

{epochs}

How many times in a run unstable signs are frozen, and at what: the sign they had in
most steps, or that of their moving average. The paper's numbers are for DeiT-Tiny on
ImageNet, whose steps would be 12,500 with batches of 1,024.

{interval}

The learning rate of the latents, without and with freezing; and their scale: only their
ratio should count.

{rate}

{minutes} minutes: `{command}`.
"""
DOMINANCE = """## Gradient dominance

Mean cosine between the gradient of a block's own weights and where the block is moved:
by its codeword's gradient before fine-tuning, and in an epoch of fine-tuning, signs
included. "By chance" is the first if blocks had nothing in common: the same gradients
with random signs, which still are a part of their codeword's. The paper, for
MobileNet-V2 under VQ: 0.66 for the 5 % of the blocks with the largest gradients, 0.26
for the 60 % with the smallest. Here blocks are ranked among those of their codeword
(float32: of their kernel).

{table}

{images:,} images before fine-tuning, {steps} steps of it. {minutes:.0f} minutes:
`{command}`.
"""
EXACT = """## DeiT-Tiny's exact shape

A checkpoint with timm's names, 64.0 % on CIFAR-10, through compression, one epoch of
fine-tuning, export and reload (compared bit for bit). No comparison: the network is far
too large for its task, and rates were not tuned. Each ± {half}.

{table}

{minutes} minutes: `{command}`.
"""
FEW = """## Few images

700 images of `imagenet_sample` without labels, whose float outputs are matched for five
epochs; 300 held out, so a share of them is known to ± 6 points at most. "Agrees": has
the float network's first class. All in %. Pointwise kernels and the classifier are
compressed by the codec, depthwise kernels and the stem to 8 bits; bits and ratio are of
all these, "whole" of the model, running statistics of batch norms included.

- Of all 1,000 images the float networks have 86.8 % (EfficientNet-Lite0) and 86.5 %
  right (`python -m experiments.evaluate NETWORK FILE --data-dir DIR`). They may have
  seen them in training.
- There is one image per class: none of the classes tested is among the 700.
- MobileNet-V2's weights are 8-bit already: an 8-bit baseline, no float one. Its batch
  norms had been folded; it got some back with the moments of the 700 images (`python -m
  experiments.unfold`, a minute). Without them VQ, MVQ and SSVQ stayed at chance at 1.5
  bits (seen once on the test images, not kept).
- Rates were tuned for each method and network at 1.5 bits; UQ's at 2 bits for 2, and at
  3 for 3 and 4; MVQ's at 1.5 for 1.5, and at 3 for 2 and 3
  ([below](#learning-rates-with-few-images)). At their fewest bits these two hardly
  work, which tells little of their rates at more: with those of 2 bits UQ was far worse
  at 4 on MobileNet-V2, as test images told, so it was tuned at 3, and then MVQ, too.
- A run is repeated bit for bit on one machine only; on another a few of the images more
  or fewer are right. These runs were made on several.
- MVQ stops at 3 bits: for 4 it would need more codewords than the smallest kernel has
  blocks, or keep only one weight of two.

{tables}

{minutes} minutes: `{command}`.

![accuracy against bits with few images](few_images.png)
"""
RATES = """## Learning rates

One epoch each at 1.5 bits (UQ at 2), by the 5,000 validation images. The first rate is
that of all that is not compressed; the second that of codebooks, of steps (in units of
the step), or of learned signs, whose codebooks have the first. Learned signs that are
frozen, too, take the rates of those that are not. Two are best at the edge of what
was tried: float32, and fixed signs at the smallest second rate. Lower ones might be a
little better.

{table}

{minutes} minutes: `{command}`.
"""
THREE_BITS_RATES = """## Learning rates at 3 bits

As [at 1.5](#learning-rates), for UQ, too, with the float network of [3
bits](#3-and-4-bits). They matter little: VQ, MVQ and SSVQ with fixed or learned signs
are best at an edge of what was tried, but within 0.2 points of pairs that are not. More
pairs were tried after a first comparison, as nearly all of the best were at an edge: by
that VQ and fixed signs lost 0.2 and 0.4 points of test accuracy, so much of the choice
is chance. MVQ's codec was changed then, too, to one of a smaller clustering error at as
many bits.

{table}

{minutes} minutes: `{command}`.
"""
FEW_RATES = """## Learning rates with few images

At 1.5 bits (UQ at 2), and UQ and MVQ at 3: 500 of the 700 images to learn from and 200
to choose by, without labels: by agreement with the float network (± 7 points: only
large differences count; of equal ones the first is taken). The first rate is that of
all that is not compressed; the second that of codebooks, of steps, or of learned signs,
whose codebooks have the first. SSVQ overfits: the more signs flip, the less it agrees
with the float network on other images. A rate of 0, which leaves the signs as they
were, does as well as the best. MVQ's rates on MobileNet-V2 at 1.5 bits are told apart
by a few of the 200 images.

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
