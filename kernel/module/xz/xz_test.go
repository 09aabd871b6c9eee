package xz_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	peer "github.com/mikelolasagasti/xz"

	"github.com/kilnhq/kiln/internal/oracle"
	"github.com/kilnhq/kiln/kernel/module/xz"
)

// compress compresses data with xz(1).
func compress(t testing.TB, data []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(oracle.Tool(t, "xz"), append(args, "-c")...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("xz %v: %v", args, err)
	}
	return out
}

// samples returns data of different nature.
func samples(t testing.TB) map[string][]byte {
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 200_000)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	var text []byte
	for i := 0; len(text) < 400_000; i++ {
		text = append(text, strings.Repeat("word", i%5)...)
		text = binary.AppendUvarint(text, uint64(random.Uint32())>>(i%32))
		if i%100 == 0 && len(text) > 70_000 {
			at := random.IntN(len(text) - 5000)
			text = append(text, text[at:at+random.IntN(5000)]...)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"empty":   nil,
		"byte":    []byte("x"),
		"zeros":   make([]byte, 5<<20),
		"noise":   noise,
		"text":    text,
		"mixed":   append(append(append([]byte{}, text[:50_000]...), noise...), text[:200_000]...),
		"program": program[:min(len(program), 300_000)],
	}
}

func TestDecode(t *testing.T) {
	var d xz.Decoder // shared, to see that nothing is left of the file before
	var out []byte
	for name, data := range samples(t) {
		for _, args := range [][]string{
			{"-6", "--check=crc32"}, {"--check=sha256"}, {"--check=none"},
			{"--lzma2=preset=0,lc=0,lp=4,pb=4"}, {"--lzma2=preset=1,lc=4,lp=0,pb=0"}, {"--lzma2=preset=1,lc=2,lp=2,pb=1,dict=4KiB"},
			{"-0", "--block-size=100000", "-T2"}, {"-0", "--block-list=1000,2000,0"},
		} {
			src := compress(t, data, args...)
			var err error
			if out, err = d.Decode(out, src, int64(len(data))); err != nil || !bytes.Equal(out, data) {
				t.Errorf("%s, xz %v: found %d bytes, %v, wanted %d", name, args, len(out), err, len(data))
			}
			if len(data) > 0 {
				if _, err := d.Decode(nil, src, int64(len(data))-1); !errors.Is(err, xz.ErrLimit) {
					t.Errorf("%s, xz %v: error %v, wanted %v", name, args, err, xz.ErrLimit)
				}
			}
		}
	}
}

func TestDecodeStreams(t *testing.T) {
	a, b := compress(t, []byte("first ")), compress(t, []byte("second"), "--check=crc32")
	for padding, want := range map[int]bool{0: true, 4: true, 8: true, 3: false} {
		src := append(append(append([]byte{}, a...), make([]byte, padding)...), b...)
		got, err := new(xz.Decoder).Decode(nil, append(src, make([]byte, padding)...), 100)
		if (err == nil) != want || want && string(got) != "first second" {
			t.Errorf("padding of %d: found %q, %v", padding, got, err)
		}
	}
}

func TestDecodeErrors(t *testing.T) {
	good := compress(t, []byte(strings.Repeat("some text, ", 100)), "--check=crc32")
	var d xz.Decoder
	for cut := range good {
		if _, err := d.Decode(nil, good[:cut], 1<<20); !errors.Is(err, xz.ErrFormat) {
			t.Errorf("the first %d bytes: %v", cut, err)
		}
	}
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if _, err := d.Decode(nil, bad, 1<<20); err == nil {
				t.Errorf("no error with bit %d of byte %d flipped", bit, i)
			}
		}
	}
	for _, args := range [][]string{{"--x86", "--lzma2"}, {"--delta", "--lzma2"}} {
		if _, err := d.Decode(nil, compress(t, []byte("x"), args...), 100); !errors.Is(err, xz.ErrUnsupported) {
			t.Errorf("xz %v: %v, wanted %v", args, err, xz.ErrUnsupported)
		}
	}
	if _, err := d.Decode(nil, []byte("hello, world"), 100); err == nil || err.Error() != `damaged xz file: found "hello,", wanted a stream header` {
		t.Errorf("error %v", err)
	}
}

// FuzzDecode compares with an independent decoder.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("\xfd7zXZ\x00\x00\x00\xff\x12\xd9\x41\x02\x00\x21\x01\x16\x00\x00\x00\x74\x2f\xe5\xa3\x01\x00\x02abc\x00\x00\x01\x0f\x03\x00\x00\x00\x00\x9b\xd2\x8a\x6f\x06\x72\x9e\x7a\x01\x00\x00\x00\x00\x00YZ"))
	if path, err := exec.LookPath("xz"); err == nil {
		for _, s := range []string{"aaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "abcabcabdabcabcabe0123456789abcabcabd"} {
			cmd := exec.Command(path, "-c", "--check=none")
			cmd.Stdin = strings.NewReader(s)
			if out, err := cmd.Output(); err == nil {
				f.Add(out)
			}
		}
	}
	var d xz.Decoder
	f.Fuzz(func(t *testing.T, src []byte) {
		const limit = 1 << 20
		got, err := d.Decode(nil, src, limit)
		if err != nil {
			return
		}
		r, err := peer.NewReader(bytes.NewReader(src), 0)
		if err == peer.ErrUnsupportedCheck || err == peer.ErrMemlimit {
			return
		}
		if err != nil {
			t.Fatalf("peer: %v", err)
		}
		want, err := io.ReadAll(r)
		if err == peer.ErrMemlimit {
			return
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("found %q, peer %q, %v", got, want, err)
		}
	})
}

// FuzzLZMA feeds the LZMA decoder with chunks, which checksums keep random
// bytes from reaching otherwise.
func FuzzLZMA(f *testing.F) {
	f.Add([]byte{0, 0x30, 0x8f, 0x1c, 0xc0, 0, 0, 0}, uint16(20), byte(93))
	var d xz.Decoder
	f.Fuzz(func(t *testing.T, chunk []byte, size uint16, props byte) {
		if len(chunk) == 0 || len(chunk) > 1<<16 {
			return
		}
		src := []byte("\xfd7zXZ\x00\x00\x00\xff\x12\xd9\x41\x02\x00\x21\x01\x16\x00\x00\x00\x74\x2f\xe5\xa3\xe0")
		src = binary.BigEndian.AppendUint16(src, size)
		src = binary.BigEndian.AppendUint16(src, uint16(len(chunk)-1))
		src = append(append(src, props), chunk...)
		_, err := d.Decode(nil, append(src, 0), 1<<20)
		if err == nil {
			t.Fatal("no error for a file without an index")
		}
	})
}

// BenchmarkDecode compares with a streaming decoder.
func BenchmarkDecode(b *testing.B) {
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		b.Fatal(err)
	}
	src := compress(b, program, "--check=crc32", "--lzma2=dict=1MiB")
	var d xz.Decoder
	out := make([]byte, 0, len(program))
	b.Run("own", func(b *testing.B) {
		b.SetBytes(int64(len(program)))
		for b.Loop() {
			var err error
			if out, err = d.Decode(out, src, 1<<30); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("peer", func(b *testing.B) {
		b.SetBytes(int64(len(program)))
		r, err := peer.NewReader(bytes.NewReader(src), 0)
		for b.Loop() {
			if err == nil {
				_, err = io.ReadFull(r, out[:len(program)])
			}
			if err != nil {
				b.Fatal(err)
			}
			err = r.Reset(bytes.NewReader(src))
		}
	})
}
