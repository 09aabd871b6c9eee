//go:build linux

package devicemapper

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// golden returns the bytes in text: hexadecimal digits, 0*N for N zero bytes, and
// after a quote characters, of which ~ is a space. A # begins a comment.
func golden(t *testing.T, text string) []byte {
	t.Helper()
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("SKIPPED: the bytes are those of a little-endian machine")
	}
	var b []byte
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		for _, f := range strings.Fields(line) {
			if quoted, ok := strings.CutPrefix(f, `'`); ok {
				b = append(b, strings.ReplaceAll(quoted, "~", " ")...)
				continue
			}
			if n, ok := strings.CutPrefix(f, "0*"); ok {
				zeros, err := strconv.Atoi(n)
				if err != nil {
					t.Fatal(err)
				}
				b = append(b, make([]byte, zeros)...)
				continue
			}
			x, err := hex.DecodeString(f)
			if err != nil {
				t.Fatal(err)
			}
			b = append(b, x...)
		}
	}
	return b
}

func TestEncode(t *testing.T) {
	v, err := Verity{Data: "/dev/vda", Hash: "/dev/vdb", Blocks: 2, Start: 1, Salt: []byte{0xab}, OnCorruption: Panic}.target()
	if err != nil {
		t.Fatal(err)
	}
	table, err := linear([]Segment{{"/dev/vda", 1024, 512}, {"/dev/vdb", 0, 2560}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, device string
		flags        uint32
		targets      []target
		room         int
		want         string
	}{
		{"no data", "", 0, nil, 0, `
			04000000 00000000 00000000  # version
			38010000 38010000           # sizes of all and of the header
			00000000 00000000           # targets, opens
			00000000 00000000 00000000  # flags, event, padding
			0*8 0*128 0*129 0*7         # device, name, UUID, data`},
		{"room", "root", unix.DM_READONLY_FLAG, nil, 24, `
			04000000 00000000 00000000
			50010000 38010000
			00000000 00000000
			01000000 00000000 00000000
			0*8 'root 0*124 0*129 0*7
			0*24`},
		{"verity", "v", unix.DM_READONLY_FLAG, []target{v}, 0, `
			04000000 00000000 00000000
			e8010000 38010000
			01000000 00000000
			01000000 00000000 00000000
			0*8 'v 0*127 0*129 0*7
			0*8 1000000000000000        # first sector, number of sectors
			00000000 b0000000           # status, where the next begins
			'verity 0*10
			'1~/dev/vda~/dev/vdb~4096~4096~2~1~sha256~
			'0000000000000000000000000000000000000000000000000000000000000000
			'~ab~1~panic_on_corruption
			0*6`},
		{"linear", "l", 0, table, 0, `
			04000000 00000000 00000000
			a8010000 38010000
			02000000 00000000
			00000000 00000000 00000000
			0*8 'l 0*127 0*129 0*7
			0*8 0100000000000000 00000000 38000000 'linear 0*10 '/dev/vda~2 0*6
			0100000000000000 0500000000000000 00000000 38000000 'linear 0*10 '/dev/vdb~0 0*6`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := encode(tc.device, tc.flags, tc.targets, tc.room)
			if err != nil {
				t.Fatal(err)
			}
			if want := golden(t, tc.want); !bytes.Equal(got, want) {
				t.Errorf("got\n%swant\n%s", hex.Dump(got), hex.Dump(want))
			}
		})
	}
	if _, err := encode(strings.Repeat("x", 127), 0, nil, 0); err != nil {
		t.Errorf("a name of 127 bytes: %v", err)
	}
	for _, name := range []string{strings.Repeat("x", 128), "a/b", "a\x00"} {
		if _, err := encode(name, 0, nil, 0); err == nil || !strings.Contains(err.Error(), "cannot be that of a device: at most 127 bytes, no slash") {
			t.Errorf("name %q: %v", name, err)
		}
	}
}

// header is what the kernel answers before data of n bytes.
func header(targets, flags, dev string, n byte) string {
	return `04000000 30000000 00000000 ` + hex.EncodeToString([]byte{0x38 + n, 1, 0, 0}) + ` 38010000
		` + targets + ` 02000000 ` + flags + ` 00000000 00000000 ` + dev + ` 'name 0*124 0*129 0*7
		`
}

func TestDecode(t *testing.T) {
	const dev = "07fe000000000000" // 254:7
	for _, tc := range []struct {
		name, answer string
		decode       func(*answer) (any, error)
		want         any
	}{
		{"device", header("00000000", "00000000", dev, 0), func(a *answer) (any, error) { return a.path(), nil }, "/dev/dm-7"},
		{"minor over 255", header("00000000", "00000000", "01fe100000000000", 0), func(a *answer) (any, error) { return a.path(), nil }, "/dev/dm-257"},
		{"no devices", header("00000000", "00000000", "0*8", 16) + "0*16", func(a *answer) (any, error) { return a.devices() }, []Device(nil)},
		{"devices", header("00000000", "00000000", "0*8", 48) + `
			07fe000000000000 18000000 'layer 0*7
			08fe000000000000 00000000 'x 0*11`,
			func(a *answer) (any, error) { return a.devices() }, []Device{{"layer", "/dev/dm-7"}, {"x", "/dev/dm-8"}}},
		{"kinds", header("00000000", "00000000", "0*8", 56) + `
			20000000 01000000 0a000000 00000000 'verity 0*10
			00000000 01000000 05000000 00000000 'linear 0*2`,
			func(a *answer) (any, error) { return a.kinds() }, []string{"verity", "linear"}},
		{"targets", header("02000000", "01000000", dev, 96) + `
			0*8 0800000000000000 00000000 30000000 'verity 0*10 'V 0*7
			0800000000000000 0800000000000000 00000000 60000000 'linear 0*10 0*8`,
			func(a *answer) (any, error) { return a.targets() }, []TargetStatus{{"verity", "V"}, {"linear", ""}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, err := decode(golden(t, tc.answer))
			if err != nil {
				t.Fatal(err)
			}
			got, err := tc.decode(a)
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %v, %v; want %v", got, err, tc.want)
			}
		})
	}
}

func TestDecodeNonsense(t *testing.T) {
	for _, tc := range []struct {
		name, answer string
		decode       func(*answer) error
		want         string
	}{
		{"no room", header("00000000", "00000000", "0*8", 0), func(a *answer) error { _, err := a.devices(); return err }, "a record at byte 0 of 0"},
		{"beyond", header("00000000", "00000000", "0*8", 16) + "01fe000000000000 ff000000 'abc 00", func(a *answer) error { _, err := a.devices(); return err }, "a record at byte 255 of 16"},
		{"no end", header("00000000", "00000000", "0*8", 18) + "0*16 'xy", func(a *answer) error { _, err := a.kinds(); return err }, "the record at byte 0 has no end"},
		{"back", header("02000000", "00000000", "0*8", 48) + "0*32 'verity 0*10", func(a *answer) error { _, err := a.targets(); return err }, "the record after that at byte 0 is at byte 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, err := decode(golden(t, tc.answer))
			if err != nil {
				t.Fatal(err)
			}
			if err := tc.decode(a); !errors.Is(err, errAnswer) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := decode(make([]byte, unix.SizeofDmIoctl-1)); !errors.Is(err, errAnswer) {
		t.Errorf("half a header: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, targets := range [][]target{nil, {{kind: "verity", n: 8, arguments: "V"}, {kind: "linear", start: 8, n: 1}}} {
		buf, err := encode("name", 0, targets, 64)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(buf)
	}
	f.Fuzz(func(t *testing.T, buf []byte) {
		a, err := decode(buf)
		if err != nil {
			return
		}
		for _, decode := range []func() (int, error){
			func() (int, error) { list, err := a.devices(); return len(list), err },
			func() (int, error) { list, err := a.kinds(); return len(list), err },
			func() (int, error) { list, err := a.targets(); return len(list), err },
		} {
			if n, err := decode(); err == nil && n > len(buf) {
				t.Errorf("%d records in %d bytes", n, len(buf))
			}
		}
	})
}
