package meta

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
)

func same(a, b Values) bool { return maps.EqualFunc(a, b, bytes.Equal) }

// golden builds a copy from the published format: what follows the first magic,
// and the checksum, as sha256sum tells it.
func golden(t *testing.T, body, sum string) []byte {
	t.Helper()
	b := make([]byte, 262144)
	for off, text := range map[int]string{0: "5a4b3c2d" + body, 262108: sum + "a5b4c3d2"} {
		data, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		copy(b[off:], data)
	}
	return b
}

func TestFormat(t *testing.T) {
	for _, test := range []struct {
		body, sum string
		values    Values
	}{
		{"", "e7a327df2cfb2c3010ac1a387e9573d46ea52cac7f25db80ad8fbb41aceabf70", Values{}},
		{
			"0000000a 00000007 613a20620a630a 0000000f 00000000 000000f2 00000009 455048454d4552414c",
			"64c0f72acb05fc3db6b3bc499cea0571b87cf11cbcd6a0416acce54c8d5657b7",
			Values{ResetRequest: []byte("EPHEMERAL"), MetalNetwork: []byte("a: b\nc\n"), UUIDOverride: nil},
		},
	} {
		one := golden(t, test.body, test.sum)
		got, err := Encode(test.values)
		if err != nil || !bytes.Equal(got, slices.Concat(one, one)) {
			t.Errorf("%v: encoded as %x…%x, %v", test.values, got[:64], got[CopySize-trailerSize:CopySize], err)
		}
		c, err := Read(bytes.NewReader(slices.Concat(one, one)), 2*CopySize)
		if err != nil || !same(c.Values, test.values) || c.Degraded != nil {
			t.Errorf("%v: read as %+v, %v", test.values, c, err)
		}
	}
}

// sealed is a copy with a body of whatever it is and a checksum that is right.
func sealed(body []byte) []byte {
	b := make([]byte, CopySize)
	copy(b, []byte{0x5a, 0x4b, 0x3c, 0x2d})
	copy(b[4:CopySize-36], body)
	copy(b[CopySize-4:], []byte{0xa5, 0xb4, 0xc3, 0xd2})
	sum := sha256.Sum256(b)
	copy(b[CopySize-36:], sum[:])
	return b
}

func TestDecode(t *testing.T) {
	body := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	full := append(body("00000080 0003ffd0"), bytes.Repeat([]byte{7}, 0x3ffd0)...)
	foreign := append([]byte("\xeb\x63\x90GRUB"), make([]byte, CopySize)...)[:CopySize]
	wrong := sealed(nil)
	wrong[100]++
	cut := sealed(nil)
	clear(cut[CopySize/2:])
	for name, test := range map[string]struct {
		data []byte
		want Values
		err  string
	}{
		"the last of two is the value": {sealed(body("00000001 00000001 61 00000001 00000001 62")), Values{1: []byte("b")}, ""},
		"nothing after the end":        {sealed(body("00000001 00000001 61 00000000 00000001 62 00000002 00000000")), Values{1: []byte("a")}, ""},
		"no room for the end":          {sealed(full), Values{0x80: full[8:]}, ""},
		"key too high":                 {sealed(body("00000106 00000001 61")), nil, "it has the key 0x106, at most 0xff is known"},
		"value too long":               {sealed(body("0000000a 0003ffd1")), nil, "the value of key 0x0a (metal-network) has 262097 bytes where 262096 are left"},
		"length that wraps":            {sealed(body("0000000a fffffff8")), nil, "the value of key 0x0a (metal-network) has 4294967288 bytes where 262096 are left"},
		"foreign":                      {foreign, nil, "it begins with 0xeb639047, want 0x5a4b3c2d"},
		"cut":                          {cut, nil, "it ends with 0x00000000, want 0xa5b4c3d2"},
		"checksum":                     {wrong, nil, "its SHA-256 is " + hex.EncodeToString(sumOf(wrong)[:4]) + "…, want e7a327df…"},
		"blank":                        {make([]byte, CopySize), nil, "it is all zeros"},
	} {
		got, err := decode(test.data)
		if err != nil && err.Error() != test.err || err == nil && test.err != "" || !same(got, test.want) {
			t.Errorf("%s: %v, %v; want %q", name, got, err, test.err)
		}
	}
}

func sumOf(b []byte) []byte {
	b = slices.Clone(b)
	clear(b[CopySize-36 : CopySize-4])
	sum := sha256.Sum256(b)
	return sum[:]
}

// fault fails reads of a range.
type fault struct {
	io.ReaderAt
	off int64
}

var errMedium = errors.New("medium error")

func (f fault) ReadAt(p []byte, off int64) (int, error) {
	if off == f.off {
		return 0, errMedium
	}
	return f.ReaderAt.ReadAt(p, off)
}

func TestRead(t *testing.T) {
	blank, bad := make([]byte, CopySize), bytes.Repeat([]byte{0xff}, CopySize)
	a, b := encoded(t, Values{1: []byte("a")}), encoded(t, Values{1: []byte("b")})
	for name, test := range map[string]struct {
		first, second []byte
		unreadable    int64 // offset of a copy, or -1
		want          string
		degraded      string
		err           string
	}{
		"same":                  {a, a, -1, "a", "", ""},
		"differ":                {a, b, -1, "a", "the second copy of META differs from the first: a write was cut short before the first was written", ""},
		"first damaged":         {bad, b, -1, "b", "the first copy of META is unusable: it begins with 0xffffffff, want 0x5a4b3c2d", ""},
		"second damaged":        {a, bad, -1, "a", "the second copy of META is unusable: it begins with 0xffffffff, want 0x5a4b3c2d", ""},
		"first blank":           {blank, b, -1, "b", "the first copy of META is unusable: it is all zeros", ""},
		"second blank":          {a, blank, -1, "a", "the second copy of META is unusable: it is all zeros", ""},
		"first unreadable":      {a, b, 0, "b", "the first copy of META is unusable: medium error", ""},
		"second unreadable":     {a, b, CopySize, "a", "the second copy of META is unusable: medium error", ""},
		"blank":                 {blank, blank, -1, "", "", ""},
		"first write cut":       {blank, bad, -1, "", "the second copy of META is unusable: it begins with 0xffffffff, want 0x5a4b3c2d", ""},
		"first write cut again": {bad, blank, -1, "", "the first copy of META is unusable: it begins with 0xffffffff, want 0x5a4b3c2d", ""},
		"both damaged":          {bad, bad, -1, "", "", "META is damaged: the first copy of META is unusable: it begins with 0xffffffff, want 0x5a4b3c2d; the second copy of META is unusable: it begins with 0xffffffff, want 0x5a4b3c2d"},
		"blank and unreadable":  {blank, b, CopySize, "", "", "META is damaged: the first copy of META is unusable: it is all zeros; the second copy of META is unusable: medium error"},
	} {
		c, err := Read(fault{bytes.NewReader(slices.Concat(test.first, test.second)), test.unreadable}, Size)
		if err != nil || test.err != "" {
			if !errors.Is(err, ErrDamaged) || err.Error() != test.err || errors.Is(err, errMedium) != (test.unreadable >= 0) {
				t.Errorf("%s: %v, want %q", name, err, test.err)
			}
			continue
		}
		if string(c.Values[1]) != test.want || c.Values == nil || (c.Degraded == nil) != (test.degraded == "") || c.Degraded != nil && c.Degraded.Error() != test.degraded {
			t.Errorf("%s: %v, %v; want %q, %q", name, c.Values, c.Degraded, test.want, test.degraded)
		}
	}
	if _, err := Read(bytes.NewReader(a), CopySize); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "it has 262144 bytes, want at least 524288") {
		t.Errorf("half of META: %v", err)
	}
	if _, err := Read(bytes.NewReader(bad), 2*CopySize); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file shorter than it was: %v", err)
	}
}

// encoded is one copy of v.
func encoded(t testing.TB, v Values) []byte {
	t.Helper()
	b, err := Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	return b[:CopySize]
}

func TestLimits(t *testing.T) {
	v := Values{User1: make([]byte, 100_000), 0x80: make([]byte, MaxBytes-100_000-2*ValueOverhead)}
	c, err := Read(bytes.NewReader(slices.Concat(encoded(t, v), encoded(t, v))), 2*CopySize)
	if err != nil || !same(c.Values, v) {
		t.Errorf("as much as fits is read as %v", err)
	}
	v[0x81] = nil
	want := "META is full: the values take 262112 bytes with 8 for each, at most 262104 fit; the largest is that of key 0x80 with 162088 bytes"
	if _, err := Encode(v); !errors.Is(err, ErrTooLarge) || err.Error() != want {
		t.Errorf("more than fits: %v, want %s", err, want)
	}
	if _, err := Encode(Values{0: nil}); !errors.Is(err, ErrKey) || err.Error() != "invalid META key: 0 marks the end of the values" {
		t.Errorf("key 0: %v", err)
	}
}

// No bit of a copy may flip unnoticed: every one of the fields is tried, and some
// of the zeros between.
func TestBitFlips(t *testing.T) {
	v := Values{MetalNetwork: []byte("addresses: [192.0.2.7/24]"), 0x80: []byte("x")}
	for i, place := range []string{"first", "second"} {
		image := slices.Concat(encoded(t, v), encoded(t, v))
		c := image[i*CopySize : (i+1)*CopySize]
		for at := range c {
			if at > 64 && at < CopySize-trailerSize && at%16411 != 0 {
				continue
			}
			for bit := range 8 {
				c[at] ^= 1 << bit
				got, err := Read(bytes.NewReader(image), 2*CopySize)
				c[at] ^= 1 << bit
				if err != nil || !same(got.Values, v) || got.Degraded == nil || !strings.HasPrefix(got.Degraded.Error(), "the "+place+" copy of META is unusable: ") {
					t.Fatalf("bit %d of byte %d of the %s copy: %+v, %v", bit, at, place, got, err)
				}
			}
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte{}, true)
	f.Add([]byte("\x00\x00\x00\x0a\x00\x00\x00\x03abc\x00\x00\x00\x0f\x00\x00\x00\x00"), true)
	f.Add([]byte("\x00\x00\x00\x0a\xff\xff\xff\xf8"), true)
	f.Add([]byte("\x00\x00\x01\x0a\x00\x00\x00\x00"), true)
	f.Add([]byte("\x5a\x4b\x3c\x2d"), false)
	f.Fuzz(func(t *testing.T, body []byte, whole bool) {
		image := make([]byte, 2*CopySize)
		if whole {
			copy(image, sealed(body))
		} else {
			copy(image, body)
		}
		c, err := Read(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			t.Fatal(err) // the second copy is blank
		}
		again, err := Read(bytes.NewReader(slices.Concat(encoded(t, c.Values), make([]byte, CopySize))), 2*CopySize)
		if err != nil || !same(again.Values, c.Values) {
			t.Errorf("%v became %v, %v", c.Values, again, err)
		}
	})
}
