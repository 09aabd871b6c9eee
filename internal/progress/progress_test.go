package progress

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestModes(t *testing.T) {
	for mode, want := range map[Mode]string{
		Plain: "reading name=x y=\"a b\"\nwrite: 2.00 KiB in 2.0 s (1.00 KiB/s)\n",
		JSON:  `{"event":"reading","level":"info","name":"x","y":"a b"}` + "\n" + `{"done":1024,"event":"progress","step":"write","total":2048}` + "\n" + `{"done":2048,"event":"progress","step":"write","total":2048}` + "\n" + `{"bytes":2048,"event":"done","seconds":2,"step":"write"}` + "\n",
		None:  "",
		Bars: "reading name=x y=\"a b\"\n\r\x1b[Kwrite [===============               ]  50% 1.00 KiB/s, 1s left" +
			"\r\x1b[Kwrite [==============================] 100% 1.00 KiB/s, 0s left\r\x1b[Kwrite: 2.00 KiB in 2.0 s (1.00 KiB/s)\n",
	} {
		var buf bytes.Buffer
		r := New(&buf, mode)
		clock := time.Unix(1000, 0)
		r.now = func() time.Time { return clock }
		r.Logger().Info("reading", "name", "x", "y", "a b")
		b := r.Bar("write", 2048)
		for range 2 {
			clock = clock.Add(time.Second)
			b.Add(1024)
		}
		b.Done(nil)
		b.Done(nil)
		if got := buf.String(); got != want {
			t.Errorf("%s:\n got %q\nwant %q", mode, got, want)
		}
	}
}

func TestDoneWithError(t *testing.T) {
	var buf bytes.Buffer
	b := New(&buf, Plain).Bar("write", 10)
	b.Done(errors.New("no"))
	if buf.Len() != 0 {
		t.Errorf("got %q", buf.String())
	}
}

func TestWarningIsNeverHidden(t *testing.T) {
	var buf bytes.Buffer
	New(&buf, None).Logger().Warn("careful")
	if !strings.Contains(buf.String(), "warn: careful") {
		t.Errorf("got %q", buf.String())
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 10 << 20: "10.0 MiB", 999 << 20: "999 MiB", 1000 << 20: "0.98 GiB", 5 << 40: "5.00 TiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %s, want %s", n, got, want)
		}
	}
}
