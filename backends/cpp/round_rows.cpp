// Rounding to nearest of weights, packed as kernels read them: symmetric integer codes of 2 to 8 bits, one
// scale per row or per block of a row, in panels of 16 rows. To the bit what `IntWeight.encode` and `pack`
// give, in one pass over the stored numbers. `Shape` is built by `round_rows.py`.
#include <stdint.h>
#include <string.h>

namespace {

enum Number { BF16, F16, F32 };
constexpr int64_t PANEL = 16, GRAIN = 4;  // rows that lie together; codes of a row that do

struct Plane {
  int64_t base, shift, width;  // bytes into the record, lowest bit of the code, bits
};

struct Shape {
  int64_t rows, k, block, depth;        // block: elements per scale; depth: elements of a row per record
  int64_t record, scales;               // bytes of a record; where its scales begin
  int64_t bits, source, scale, planes;  // bits of a code; number formats; how many planes
  float least, most;                    // rows of other magnitudes are not for this routine
  Plane plane[4];
};

uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
float float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

float of_bf16(uint16_t h) { return float_of(uint32_t(h) << 16); }
uint16_t to_bf16(float x) { uint32_t u = bits_of(x); return (u + 0x7fff + ((u >> 16) & 1)) >> 16; }

// Half floats as single ones of an exponent that is 112 too small, which a product sets right, subnormal
// numbers included.
float of_f16(uint16_t h) {
  float size = float_of(uint32_t(h & 0x7fff) << 13) * 0x1p112f;
  uint32_t u = bits_of(size) | ((h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u);
  return float_of(u | uint32_t(h & 0x8000) << 16);
}
// Of numbers that are not negative.
uint16_t to_f16(float x) {
  if (x >= 65520.0f) return 0x7c00;
  uint32_t u = bits_of(x);
  if (x < 0x1p-14f) return bits_of(x + 0.5f) - bits_of(0.5f);  // the sum rounds to multiples of 2^-24
  return (u + 0xfff + ((u >> 13) & 1) - (112u << 23)) >> 13;
}

template <class T, float of(T)>
void widen(const uint8_t* from, float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    T t;
    memcpy(&t, from + i * sizeof(T), sizeof(T));  // files align nothing
    x[i] = of(t);
  }
}

void row_of(const Shape& s, const uint8_t* from, int64_t row, float* x) {
  if (s.source == BF16) widen<uint16_t, of_bf16>(from + row * s.k * 2, x, s.k);
  if (s.source == F16) widen<uint16_t, of_f16>(from + row * s.k * 2, x, s.k);
  if (s.source == F32) memcpy(x, from + row * s.k * 4, s.k * 4);
}

// Magnitudes compare as integers do; those of NaN are largest.
float largest(const float* x, int64_t n) {
  int32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    int32_t size = bits_of(x[i]) & 0x7fffffff;
    most = size > most ? size : most;
  }
  return float_of(most);
}

// Stores the scale, and gives it as it will be read.
float store_scale(const Shape& s, float scale, uint8_t* to) {
  if (s.scale == F32) return memcpy(to, &scale, 4), scale;
  uint16_t h = s.scale == BF16 ? to_bf16(scale) : to_f16(scale);
  memcpy(to, &h, 2);
  return s.scale == BF16 ? of_bf16(h) : of_f16(h);
}

// Adding a large number rounds to nearest even, and leaves the sum's integer in its lowest bits; `centre` is
// even, so ties fall as they would without it. RUN divides n: a count that is known becomes vectors.
template <int RUN>
void round_run(const float* x, int64_t n, float scale, float centre, uint8_t* codes) {
  float top = centre - 1, low = -centre, large = 0x1.8p23f + centre;
  for (int64_t at = 0; at < n; at += RUN) {
    uint32_t sums[RUN];
    for (int i = 0; i < RUN; ++i) {
      float q = x[at + i] / scale;
      q = q > top ? top : q;
      q = q < low ? low : q;
      sums[i] = bits_of(q + large);
    }
    for (int i = 0; i < RUN; ++i) codes[at + i] = uint8_t(sums[i]);
  }
}

void round_block(const float* x, int64_t n, float scale, float centre, uint8_t* codes) {
  if (scale == 0) return void(memset(codes, int(centre), n));
  n % 32 ? round_run<4>(x, n, scale, centre, codes) : round_run<32>(x, n, scale, centre, codes);
}

// Four bytes of a row at a time: each holds codes that lie GRAIN apart.
template <int WIDTH>
void store_plane(int64_t shift, const uint8_t* codes, int64_t n, uint8_t* to) {
  constexpr int64_t share = 8 / WIDTH;
  for (int64_t at = 0; at < n; at += share * GRAIN, to += PANEL * GRAIN) {
    uint32_t word = 0;
    for (int64_t j = 0; j < share; ++j) {
      uint32_t four;
      memcpy(&four, codes + at + j * GRAIN, 4);
      word |= ((four >> shift) & 0x01010101u * ((1u << WIDTH) - 1)) << (j * WIDTH);
    }
    memcpy(to, &word, 4);
  }
}

void store_codes(const Plane& p, const uint8_t* codes, int64_t n, uint8_t* to) {
  if (p.width == 1) store_plane<1>(p.shift, codes, n, to);
  if (p.width == 2) store_plane<2>(p.shift, codes, n, to);
  if (p.width == 4) store_plane<4>(p.shift, codes, n, to);
  if (p.width == 8) store_plane<8>(p.shift, codes, n, to);
}

bool round_row(const Shape& s, float* x, uint8_t* codes, int64_t row, uint8_t* out) {
  float size = largest(x, s.k), centre = float(1 << (s.bits - 1));
  if (size != 0 && !(size >= s.least && size <= s.most)) return false;
  int64_t width = s.scale == F32 ? 4 : 2, in_panel = row % PANEL;
  uint8_t* record = out + row / PANEL * ((s.k + s.depth - 1) / s.depth) * s.record;
  for (int64_t at = 0; at < s.k; at += s.depth, record += s.record) {
    uint8_t* scales = record + s.scales + in_panel * width;
    for (int64_t k = 0; k < s.depth; k += s.block, scales += PANEL * width) {
      float scale = store_scale(s, largest(x + at + k, s.block) / (centre - 1), scales);
      if (!(scale < 0x1p127f)) return false;
      round_block(x + at + k, s.block, scale, centre, codes + k);
    }
    for (int64_t p = 0; p < s.planes; ++p)
      store_codes(s.plane[p], codes, s.depth, record + s.plane[p].base + in_panel * GRAIN);
  }
  return true;
}

}  // namespace

// Rows [rows, k] of stored numbers to records in `out`, which is zero. `scratch`: k floats, then k + 32 bytes
// that are zero. Returns 0 for rows that want another look: NaN, infinities, magnitudes beyond the shape's.
extern "C" int tw_round_rows(const Shape* s, const uint8_t* from, float* scratch, uint8_t* out) {
  uint8_t* codes = (uint8_t*)(scratch + s->k);
  for (int64_t row = 0; row < s->rows; ++row) {
    row_of(*s, from, row, scratch);
    if (!round_row(*s, scratch, codes, row, out)) return 0;
  }
  return 1;
}
