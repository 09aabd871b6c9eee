// Package bytesize holds sizes as people write them.
package bytesize

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes, written in YAML as an integer with an optional
// unit: KiB, MiB, GiB, TiB (powers of 1024) or kB, MB, GB, TB (of 1000).
type Size int64

// Units of Size.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

var units = []struct {
	suffix string
	bytes  Size
}{
	{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// Parse parses a size such as "100MiB".
func Parse(s string) (Size, error) {
	digits, unit := strings.TrimSpace(s), Size(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(digits, u.suffix); ok {
			digits, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("size %q: want a whole number with a unit, for example 100MiB or 2GiB", s)
	}
	if n > math.MaxInt64/int64(unit) {
		return 0, fmt.Errorf("size %q: too large", s)
	}
	return Size(n) * unit, nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error {
	v, err := Parse(string(text))
	if err != nil {
		return err
	}
	*s = v
	return nil
}

// MarshalText implements encoding.TextMarshaler, with the largest binary unit
// that is exact.
func (s Size) MarshalText() ([]byte, error) {
	for _, u := range units[:4] {
		if s != 0 && s%u.bytes == 0 {
			return fmt.Appendf(nil, "%d%s", s/u.bytes, u.suffix), nil
		}
	}
	return fmt.Appendf(nil, "%d", int64(s)), nil
}

// String returns the size as MarshalText writes it.
func (s Size) String() string {
	b, _ := s.MarshalText() // never fails
	return string(b)
}
