package dhcp6

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	duid   = DUIDFromMAC([]byte{0x52, 0x54, 0, 0x12, 0x34, 0x56})
	server = []byte{0, 3, 0, 1, 2, 0, 0, 0, 0, 1}
	leased = netip.MustParseAddr("fd00::50")
)

const iaid = 0x00123456

func unhex(t testing.TB, parts ...string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Join(parts, ""), " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A sent message, with the time since the start.
type sent struct {
	at   time.Duration
	kind byte
	xid  []byte
	opts map[uint16][]byte
	raw  []byte
}

type fake struct {
	start  time.Time
	log    []sent
	events []Event
	answer func(sent) [][]byte
	inbox  chan []byte
	broken error // of Send, for a second
}

func (f *fake) Send(m []byte) error {
	if f.broken != nil && time.Since(f.start) < 2*time.Second {
		return f.broken
	}
	s := sent{time.Since(f.start), m[0], m[1:4], map[uint16][]byte{}, bytes.Clone(m)}
	if err := options(m[4:], func(code uint16, v []byte) { s.opts[code] = v }); err != nil {
		return err
	}
	f.log = append(f.log, s)
	if f.answer != nil {
		for _, a := range f.answer(s) {
			f.inbox <- a
		}
	}
	return nil
}

func (f *fake) Receive(ctx context.Context) ([]byte, error) {
	select {
	case m := <-f.inbox:
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *fake) kinds() string {
	names := map[byte]string{solicit: "SOLICIT", request: "REQUEST", confirm: "CONFIRM", renew: "RENEW", rebind: "REBIND", inform: "INFORM"}
	var list []string
	for _, s := range f.log {
		list = append(list, names[s.kind])
	}
	return strings.Join(list, " ")
}

func (f *fake) errs() string {
	var list []string
	for _, e := range f.events {
		if e.Err != nil {
			list = append(list, e.Err.Error())
		}
	}
	return strings.Join(list, "\n")
}

// head begins an answer.
func head(s sent, kind byte) *message {
	m := newMessage(kind, 0)
	copy(m[1:4], s.xid)
	m.add(optClientID, s.opts[optClientID])
	m.add(optServerID, server)
	return &m
}

// ia appends the IA with an address that is valid for so many seconds.
func (m *message) ia(t1, t2, preferred, valid uint32) *message {
	inner := message(binary.BigEndian.AppendUint32(nil, iaid))
	inner = binary.BigEndian.AppendUint32(inner, t1)
	inner = binary.BigEndian.AppendUint32(inner, t2)
	addr := leased.As16()
	v := binary.BigEndian.AppendUint32(addr[:], preferred)
	inner.add(optIAAddr, binary.BigEndian.AppendUint32(v, valid))
	m.add(optIANA, inner)
	return m
}

func (m *message) status(code byte, text string) *message {
	m.add(optStatus, append([]byte{0, code}, text...))
	return m
}

// good answers as a server without rapid commit.
func good(s sent) [][]byte {
	kind := byte(reply)
	if s.kind == solicit {
		kind = advertise
	}
	m := head(s, kind).ia(0, 0, 3600, 7200)
	m.add(optDNS, netip.MustParseAddr("fd00::53").AsSlice())
	return [][]byte{*m}
}

func run(t *testing.T, d time.Duration, f *fake, with func(*Config)) {
	t.Helper()
	f.start, f.inbox = time.Now(), make(chan []byte, 16)
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	c := Config{Interface: "eth0", DUID: duid, IAID: iaid, Addresses: true, Rand: rand.New(rand.NewPCG(1, 2)),
		Report: func(e Event) { f.events = append(f.events, e) }}
	if with != nil {
		with(&c)
	}
	if err := c.Run(ctx, f); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run: %v", err)
	}
}

func TestLeaseIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: good}
		run(t, 80*time.Minute, f, nil)
		if got := f.kinds(); got != "SOLICIT REQUEST RENEW RENEW" {
			t.Fatalf("sent %s", got)
		}
		// RFC 8415, byte by byte.
		xid := hex.EncodeToString(f.log[0].xid)
		want := unhex(t, "01", xid, "0001 000a 00030001525400123456", "0008 0002 0000", "0003 000c 00123456 00000000 00000000", "000e 0000",
			"0006 000a 0017 0018 001f 0020 0038")
		if !bytes.Equal(f.log[0].raw, want) {
			t.Errorf("SOLICIT\n%x, want\n%x", f.log[0].raw, want)
		}
		if r := f.log[1]; !bytes.Equal(r.opts[optServerID], server) || !bytes.Contains(r.opts[optIANA], leased.AsSlice()) {
			t.Errorf("REQUEST %x", r.raw)
		}
		if f.log[2].at != 30*time.Minute || f.log[3].at != time.Hour {
			t.Errorf("renewed at %v and %v", f.log[2].at, f.log[3].at)
		}
		l := f.events[0].Lease
		if len(f.events) != 3 || l == nil || !reflect.DeepEqual(l.Addresses, []Address{{leased, time.Hour, 2 * time.Hour}}) ||
			len(l.DNS) != 1 || l.RebindAt.Sub(l.Acquired) != 48*time.Minute || l.Expires.Sub(l.Acquired) != 2*time.Hour {
			t.Errorf("%+v", f.events)
		}
	})
}

// There is no address to send from at first, then noise around the answer.
func TestRapidCommitAndNoise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{broken: errors.New("cannot assign requested address")}
		f.answer = func(s sent) [][]byte {
			other := *head(s, reply).ia(0, 0, 60, 60)
			other[1]++
			stranger := head(s, reply)
			*stranger = bytes.Replace(*stranger, duid, bytes.Repeat([]byte{9}, len(duid)), 1)
			m := head(s, reply).ia(0, 0, 3600, 7200)
			slow := bytes.Clone(*m) // a REPLY to SOLICIT without the option
			m.add(optRapidCommit, nil)
			return [][]byte{nil, {7}, make([]byte, 2000), bytes.Repeat([]byte{7}, 65000), other, *stranger, slow, *m}
		}
		run(t, time.Minute, f, nil)
		if f.kinds() != "SOLICIT" || len(f.events) != 1 || f.events[0].Lease == nil || f.log[0].at > 3*time.Second {
			t.Errorf("sent %s, %+v", f.kinds(), f.events)
		}
	})
}

func TestNobodyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		run(t, 10*time.Minute, f, nil)
		base := time.Second
		for i := 1; i < len(f.log); i++ {
			if d := f.log[i].at - f.log[i-1].at; d < base*9/10 || d > base*11/10 {
				t.Errorf("message %d after %v, want about %v", i, d, base)
			}
			base = min(2*base, 2*time.Minute)
		}
		// The sixth message ended just before 30 s.
		const silent = "no answer from any DHCPv6 server on eth0 for "
		if !strings.HasPrefix(f.errs(), silent+"1m0s\n"+silent+"2m0s\n"+silent+"4m0s") {
			t.Errorf("reported %s", f.errs())
		}
	})
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func(sent) [][]byte
		kinds  string
		err    string
	}{
		{"no addresses", func(s sent) [][]byte { return [][]byte{*head(s, advertise).status(2, "no addresses \x1b left")} },
			"SOLICIT SOLICIT", `DHCPv6 on eth0: the server says status 2, "no addresses \x1b left"`},
		{"no IA", func(s sent) [][]byte { return [][]byte{*head(s, advertise)} },
			"SOLICIT SOLICIT", "DHCPv6 on eth0: the server gives no address"},
		{"request refused", func(s sent) [][]byte {
			if s.kind == request {
				return [][]byte{*head(s, reply).status(1, "")}
			}
			return good(s)
		}, "SOLICIT REQUEST SOLICIT", `DHCPv6 on eth0: the server says status 1, ""`},
		{"renewal refused", func(s sent) [][]byte {
			if s.kind == renew {
				return [][]byte{*head(s, reply).status(3, "NoBinding")}
			}
			return good(s)
		}, "SOLICIT REQUEST RENEW SOLICIT REQUEST", `eth0 has lost fd00::50: the server says status 3, "NoBinding"`},
		{"gone", func(s sent) [][]byte {
			if s.kind == renew || s.kind == rebind {
				return nil
			}
			return good(s)
		}, "SOLICIT REQUEST RENEW RENEW", "eth0 has lost fd00::50: no DHCPv6 server answers, and the lease is over"},
		{"not confirmed", func(s sent) [][]byte {
			if s.kind == solicit {
				return good(s)
			}
			return nil
		}, "SOLICIT REQUEST REQUEST", "DHCPv6 server 00030001020000000001 offers fd00::50 on eth0 and does not confirm it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fake{answer: c.answer}
				run(t, 150*time.Minute, f, nil)
				if !strings.HasPrefix(f.kinds(), c.kinds) || !strings.HasPrefix(f.errs(), c.err) {
					t.Errorf("sent %s, reported %s", f.kinds(), f.errs())
				}
				if len(f.log) > 2000 {
					t.Errorf("%d messages in two hours", len(f.log))
				}
			})
		})
	}
}

func TestConfirmAndRebind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		moved := false
		f := &fake{}
		f.answer = func(s sent) [][]byte {
			switch {
			case s.kind == confirm && moved:
				return [][]byte{*head(s, reply).status(statusNotOnLink, "")}
			case s.kind == confirm, s.kind == renew:
				return nil
			}
			return good(s)
		}
		confirms := make(chan struct{}, 1)
		time.AfterFunc(5*time.Minute, func() { confirms <- struct{}{} })
		time.AfterFunc(50*time.Minute, func() {
			moved = true
			confirms <- struct{}{}
		})
		run(t, 52*time.Minute, f, func(c *Config) { c.Confirm = confirms })
		var kinds []string
		for _, s := range f.log {
			if s.kind != renew && (len(kinds) == 0 || s.kind != confirm || kinds[len(kinds)-1] != "confirm") {
				kinds = append(kinds, map[byte]string{solicit: "solicit", request: "request", confirm: "confirm", rebind: "rebind"}[s.kind])
			}
		}
		if got := strings.Join(kinds, " "); got != "solicit request confirm rebind confirm solicit request" {
			t.Errorf("sent %s", got)
		}
		if want := `eth0 has lost fd00::50: the server says status 4, ""`; f.errs() != want {
			t.Errorf("reported %s", f.errs())
		}
	})
}

func TestInformation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: func(s sent) [][]byte {
			m := head(s, reply)
			m.add(optSearch, []byte("\x01a\x07example\x03org\x00"))
			m.add(optNTP, unhex(t, "0001 0010 fd000000000000000000000000000123 0003 0003 016100"))
			m.add(optRefresh, []byte{0, 0, 0, 1}) // less than the least
			return [][]byte{*m}
		}}
		run(t, 25*time.Minute, f, func(c *Config) { c.Addresses = false })
		if f.kinds() != "INFORM INFORM INFORM" || f.log[1].at != 10*time.Minute || f.log[0].opts[optIANA] != nil {
			t.Errorf("sent %s", f.kinds())
		}
		want := Info{Search: []string{"a.example.org"}, NTP: []netip.Addr{netip.MustParseAddr("fd00::123")}}
		if l := f.events[0].Lease; l == nil || !reflect.DeepEqual(l.Info, want) || l.Addresses != nil {
			t.Errorf("%+v", f.events)
		}
	})
}

func TestParse(t *testing.T) {
	base := "07 123456 0001 0003 000401 0002 0003 000402"
	for _, c := range []struct{ data, err string }{
		{base, ""},
		{"07 1234", "3 bytes are no answer of a DHCPv6 server"},
		{"01" + base[2:], "18 bytes are no answer of a DHCPv6 server"},
		{base + "0017", "DHCPv6 options end within an option"},
		{base + "0017 0010 00", "DHCPv6 options end within an option"},
		{"07 123456 0002 0001 00", "answer of a DHCPv6 server with an identifier of 1 bytes"},
		{base + "0003 0010 00123456 00000000 00000000 0005 0018", "DHCPv6 options end within an option"},
	} {
		_, err := parse(unhex(t, c.data), iaid)
		if err == nil && c.err != "" || err != nil && err.Error() != c.err {
			t.Errorf("%s: %v, want %s", c.data, err, c.err)
		}
	}
	// Preferred longer than valid, no time at all, a group: no addresses of ours.
	for _, addr := range []string{"fd000000000000000000000000000050 00000002 00000001", "fd000000000000000000000000000050 00000000 00000000", "ff020000000000000000000000000001 00000001 00000001"} {
		a, err := parse(unhex(t, base, "0003 0028 00123456 00000000 00000000 0005 0018", addr), iaid)
		if err != nil || a.ia == nil || len(a.ia.addrs) != 0 || a.has() {
			t.Errorf("%s: %+v, %v", addr, a, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	s := sent{xid: []byte{1, 2, 3}, opts: map[uint16][]byte{optClientID: duid}}
	f.Add([]byte(*head(s, reply).ia(1, 2, 3, 4).status(0, "ok")))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := parse(data, iaid)
		if err != nil || !a.has() {
			return
		}
		l := (&client{}).newLease(a)
		if !l.Expires.IsZero() && (l.RenewAt.Before(l.Acquired.Add(leastRenew)) || l.RebindAt.Before(l.RenewAt) || l.Expires.Before(l.RebindAt)) {
			t.Errorf("%+v", l)
		}
		if len(l.Addresses) == 0 || len(l.Addresses) > maxAddrs || len(l.DNS) > maxServers {
			t.Errorf("%+v", l)
		}
	})
}
