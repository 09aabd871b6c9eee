package ndp

import (
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	header = "86 00 0000 40 c0 0708 00000000 00000000"
	prefix = "03 04 40 c0 00015180 00003840 00000000 fd000000000000000000000000000000"
	rdnss  = "19 03 0000 00000e10 fd000000000000000000000000000001"
	dnssl  = "1f 03 0000 ffffffff 036c616e 00 0000000000000000000000"
	router = netip.MustParseAddr("fe80::1")
)

func unhex(t testing.TB, parts ...string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Join(parts, ""), " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	full := Advertisement{Managed: true, Other: true, Lifetime: 30 * time.Minute, DNS: []netip.Addr{netip.MustParseAddr("fd00::1")}, DNSFor: time.Hour,
		Search: []string{"lan"}, SearchFor: Forever}
	got, err := parse(unhex(t, header, prefix, rdnss, dnssl))
	if err != nil || !reflect.DeepEqual(got, full) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, full)
	}
	plain := Advertisement{Managed: true, Other: true, Lifetime: 30 * time.Minute}
	for _, option := range []string{
		"",
		"19 01 0000 00000e10", // no server
		"1f 01 0000 00000e10",
		"1f 02 0000 00000e10 ff00000000000000", // no name
		"fe 01 000000000000",
	} {
		if got, err := parse(unhex(t, header, option)); err != nil || !reflect.DeepEqual(got, plain) {
			t.Errorf("%s: %+v, %v", option, got, err)
		}
	}
	for _, c := range []struct{ data, err string }{
		{header[:len(header)-2], "15 bytes are no router advertisement"},
		{"85" + header[2:], "16 bytes are no router advertisement"},
		{header + "19 00 0000 00000000", "router advertisement ends within an option"},
		{header + "19 03 0000 00000000", "router advertisement ends within an option"},
		{header + "19", "router advertisement ends within an option"},
	} {
		if _, err := parse(unhex(t, c.data)); err == nil || err.Error() != c.err {
			t.Errorf("%s: %v", c.data, err)
		}
	}
	bad := strings.Repeat("ff020000000000000000000000000001", 1) + strings.Repeat("0", 32) + strings.Repeat("fd000000000000000000000000000009", 2)
	if got, err := parse(unhex(t, header, "19 09 0000 00000e10", bad)); err != nil || len(got.DNS) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// fake answers the n-th solicitation that could be sent.
type fake struct {
	start   time.Time
	sent    []time.Duration
	refused int
	answers map[int][]byte
	inbox   chan []byte
}

func (f *fake) Solicit(m []byte) error {
	if f.refused > 0 {
		f.refused--
		return errors.New("no address yet")
	}
	f.sent = append(f.sent, time.Since(f.start))
	if a, ok := f.answers[len(f.sent)]; ok {
		f.inbox <- []byte{typeAdvertisement}
		f.inbox <- a
	}
	return nil
}

func (f *fake) Receive(ctx context.Context) ([]byte, netip.Addr, error) {
	select {
	case m := <-f.inbox:
		return m, router, nil
	case <-ctx.Done():
		return nil, netip.Addr{}, ctx.Err()
	}
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{start: time.Now(), refused: 2, inbox: make(chan []byte, 2), answers: map[int][]byte{3: unhex(t, header, rdnss)}}
		again := make(chan struct{}, 1)
		time.AfterFunc(time.Hour, func() { again <- struct{}{} })
		ctx, cancel := context.WithTimeout(t.Context(), 61*time.Minute)
		defer cancel()
		var got []Advertisement
		if err := Watch(ctx, f, again, func(a Advertisement) { got = append(got, a) }); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if len(got) != 1 || got[0].Router != router || len(got[0].DNS) != 1 {
			t.Errorf("%+v", got)
		}
		// After the second refusal, and then 4 s, 8 s; nothing while the
		// router is known; and again when the carrier came back.
		if len(f.sent) < 4 || f.sent[0] != time.Second || f.sent[3] != time.Hour {
			t.Fatalf("sent at %v", f.sent)
		}
		for i, base := range []time.Duration{4 * time.Second, 8 * time.Second} {
			if d := f.sent[i+1] - f.sent[i]; d < base*9/10 || d > base*11/10 {
				t.Errorf("%v between solicitations, want about %v", d, base)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(unhex(f, header, prefix, rdnss))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := parse(data)
		if err == nil && len(a.DNS) > maxServers {
			t.Errorf("%d name servers", len(a.DNS))
		}
	})
}
