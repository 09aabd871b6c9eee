package dhcp4

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// golden is a DISCOVER, byte by byte from RFC 2131, figure 1.
var golden = strings.Join([]string{
	"01 01 06 00", "12345678", "0003 0000", "00000000", "00000000", "00000000", "00000000",
	"525400123456" + strings.Repeat("00", 10), strings.Repeat("00", 64), strings.Repeat("00", 128),
	"63825363",
	"35 01 01", "3d 07 01 525400123456", "0c 06 6e6f64652d31", "39 02 05c0",
	"37 0c 01 79 03 06 0c 0f 1a 2a 77 33 3a 3b", "ff",
}, "")

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMarshal(t *testing.T) {
	c := &client{Config: Config{ClientID: append([]byte{1}, testMAC...)}, mac: [6]byte(testMAC), xid: 0x12345678, began: time.Now().Add(-3500 * time.Millisecond)}
	p := c.packet(discover)
	p.parameters("node-1")
	want := unhex(t, golden)
	want = append(want, make([]byte, minSize-len(want))...)
	if got := p.marshal(); !bytes.Equal(got, want) {
		t.Errorf("got\n%x, want\n%x", got, want)
	}
}

// An option of 600 bytes goes in three parts, RFC 3396.
func TestLongOption(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789"), 60)
	p := &packet{op: opReply}
	p.set(optSearch, long...)
	p.set(optMessage)
	got, err := parse(p.marshal())
	if err != nil || !bytes.Equal(got.option(optSearch), long) || len(got.option(optMessage)) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestParse(t *testing.T) {
	whole := unhex(t, golden)
	change := func(at int, b ...byte) []byte {
		c := bytes.Clone(whole)
		copy(c[at:], b)
		return c
	}
	for _, c := range []struct {
		data []byte
		err  string
	}{
		{whole, ""},
		{whole[:239], "DHCP message of 239 bytes, at least 240 are wanted"},
		{whole[:240], ""},
		{whole[:245], "DHCP options end within an option"},
		{whole[:241], "DHCP options end within an option"},
		{change(1, 32), "DHCP message for hardware type 32 with addresses of 6 bytes, not for Ethernet"},
		{change(236, 0), "BOOTP message without the cookie of DHCP: 00 82 53 63"},
		{change(240, optOverload, 1, 1, optEnd), ""},
		{append(change(108, 1, 200), 0)[:0], "DHCP message of 0 bytes, at least 240 are wanted"},
	} {
		_, err := parse(c.data)
		if err == nil && c.err != "" || err != nil && err.Error() != c.err {
			t.Errorf("%v, want %s", err, c.err)
		}
	}
}

// With option 52 the options go on in file, then in sname.
func TestOverload(t *testing.T) {
	b := (&packet{op: opReply}).marshal()
	copy(b[headerSize:], []byte{optOverload, 1, 3, optDomain, 2, 'a', '.', optEnd})
	copy(b[108:], []byte{optDomain, 2, 'b', '.', optEnd})
	copy(b[44:], []byte{optDomain, 1, 'c', optEnd})
	p, err := parse(b)
	if err != nil || string(p.option(optDomain)) != "a.b.c" {
		t.Errorf("%+v, %v", p, err)
	}
	b[headerSize+2] = 2
	if p, err = parse(b); err != nil || string(p.option(optDomain)) != "a.c" {
		t.Errorf("sname only: %+v, %v", p, err)
	}
}

func TestLease(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	addr := netip.MustParseAddr
	base := func() *packet {
		return reply(&packet{chaddr: [6]byte(testMAC)}, ack, 3600)
	}
	without := func(code byte) *packet {
		p := base()
		for i, o := range p.options {
			if o.code == code {
				p.options = append(p.options[:i:i], p.options[i+1:]...)
			}
		}
		return p
	}
	with := func(p *packet, code byte, data ...byte) *packet {
		p.set(code, data...)
		return p
	}
	plain := Lease{Address: netip.MustParsePrefix("10.0.0.50/24"), Server: server, Routers: []netip.Addr{server}, Duration: time.Hour,
		Acquired: now, RenewAt: now.Add(30 * time.Minute), RebindAt: now.Add(3150 * time.Second), Expires: now.Add(time.Hour)}
	const says = "DHCP server 10.0.0.1 says "
	for _, c := range []struct {
		name string
		p    *packet
		want func(*Lease)
	}{
		{"plain", base(), func(*Lease) {}},
		{"all", func() *packet {
			p := with(base(), optDNS, 10, 0, 0, 2, 10, 0, 0, 3)
			p = with(p, optNTP, 10, 0, 0, 4)
			p = with(p, optMTU, 0x23, 0x28)
			p = with(p, optHostname, []byte("n1\x00")...)
			p = with(p, optDomain, []byte("example.org.")...)
			p = with(p, optSearch, []byte("\x01a\x07example\x03org\x00\x01b\xc0\x02")...)
			p = with(p, optRenewalTime, 0, 0, 1, 0)
			return with(p, optRebindingTime, 0, 0, 2, 0)
		}(), func(l *Lease) {
			l.DNS, l.NTP, l.MTU = []netip.Addr{addr("10.0.0.2"), addr("10.0.0.3")}, []netip.Addr{addr("10.0.0.4")}, 9000
			l.Hostname, l.Domain, l.Search = "n1", "example.org", []string{"a.example.org", "b.example.org"}
			l.RenewAt, l.RebindAt = now.Add(256*time.Second), now.Add(512*time.Second)
		}},
		{"classless routes", with(base(), optClasslessRoutes, 0, 10, 0, 0, 254, 20, 192, 168, 16, 0, 0, 0, 0, 32, 1, 2, 3, 4, 10, 0, 0, 50), func(l *Lease) {
			l.Routers = nil
			l.Routes = []Route{{netip.MustParsePrefix("0.0.0.0/0"), addr("10.0.0.254")}, {netip.MustParsePrefix("192.168.16.0/20"), addr("0.0.0.0")}}
			l.Warnings = []string{says + "the route to 1.2.3.4/32 through 10.0.0.50; it is ignored"}
		}},
		{"classless routes cut", with(base(), optClasslessRoutes, 24, 10, 0), func(l *Lease) {
			l.Warnings = []string{says + "classless routes that cannot be; they are ignored"}
		}},
		{"classless routes width", with(base(), optClasslessRoutes, 33, 10, 0, 0, 0, 0, 1, 1, 1, 1), func(l *Lease) {
			l.Warnings = []string{says + "classless routes that cannot be; they are ignored"}
		}},
		{"mask 0", with(without(optSubnetMask), optSubnetMask, 0, 0, 0, 0), func(l *Lease) {
			l.Address = netip.MustParsePrefix("10.0.0.50/32")
			l.Warnings = []string{says + "the mask 0.0.0.0; /32 is taken"}
		}},
		{"mask with holes", with(without(optSubnetMask), optSubnetMask, 255, 0, 255, 0), func(l *Lease) {
			l.Address = netip.MustParsePrefix("10.0.0.50/32")
			l.Warnings = []string{says + "the mask 255.0.255.0; /32 is taken"}
		}},
		{"no mask", without(optSubnetMask), func(l *Lease) {
			l.Address = netip.MustParsePrefix("10.0.0.50/32")
			l.Warnings = []string{says + "no mask of the network; /32 is taken"}
		}},
		{"MTU 68", with(base(), optMTU, 0, 68), func(l *Lease) {
			l.Warnings = []string{says + "an MTU of 68; it is ignored, at least 576 is wanted"}
		}},
		{"routers that cannot be", with(without(optRouter), optRouter, 0, 0, 0, 0, 224, 0, 0, 1, 10, 0, 0, 50, 10, 9, 9, 9), func(l *Lease) {
			l.Routers = []netip.Addr{addr("10.9.9.9")}
			l.Warnings = []string{says + "the router 0.0.0.0; it is ignored", says + "the router 224.0.0.1; it is ignored", says + "the router 10.0.0.50; it is ignored"}
		}},
		{"DNS of 5 bytes", with(base(), optDNS, 1, 2, 3, 4, 5), func(l *Lease) {
			l.Warnings = []string{says + "a list of DNS servers of 5 bytes; it is ignored"}
		}},
		{"names", with(with(with(base(), optDomain, []byte("a b")...), optHostname, []byte("x\ny")...), optSearch, 0xc0), func(l *Lease) {
			l.Warnings = []string{says + `the host name "x\ny"; it is ignored`, says + `the domain "a b"; it is ignored`,
				says + "search domains that cannot be read (domain names: list ends within a name); they are ignored"}
		}},
		{"no time", without(optLeaseTime), func(l *Lease) {
			l.Warnings = []string{says + "nothing about how long the lease lasts; 1h0m0s is taken"}
		}},
		{"no time at all", with(without(optLeaseTime), optLeaseTime, 0, 0, 0, 0), func(l *Lease) {
			l.Duration, l.RenewAt, l.RebindAt, l.Expires = minLease, now.Add(10*time.Second), now.Add(17500*time.Millisecond), now.Add(20*time.Second)
			l.Warnings = []string{says + "a lease of 0s; 20s is taken"}
		}},
		{"T1 after T2", with(with(base(), optRenewalTime, 0, 0, 8, 0), optRebindingTime, 0, 0, 4, 0), func(l *Lease) {
			l.RenewAt, l.RebindAt = now.Add(1024*time.Second), now.Add(1024*time.Second)
		}},
		{"never", with(without(optLeaseTime), optLeaseTime, 255, 255, 255, 255), func(l *Lease) {
			l.Duration, l.RenewAt, l.RebindAt, l.Expires = 0, time.Time{}, time.Time{}, time.Time{}
		}},
	} {
		want := plain
		c.want(&want)
		got, err := newLease(c.p, now)
		if err != nil || !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: %v\n got %+v\nwant %+v", c.name, err, got, want)
		}
	}

	many := with(without(optDNS), optDNS, bytes.Repeat([]byte{224, 0, 0, 1}, 100)...)
	if l, err := newLease(many, now); err != nil || len(l.Warnings) != maxWarnings {
		t.Errorf("%v, %d warnings", err, len(l.Warnings))
	}
	multicast := base()
	multicast.yiaddr = addr("224.0.0.5")
	if _, err := newLease(multicast, now); err == nil || err.Error() != "not a lease: DHCP server 10.0.0.1 gives 224.0.0.5, which is no address of a host" {
		t.Error(err)
	}
}

// turn makes a frame of a server of one of a client.
func turn(t testing.TB, frame []byte) []byte {
	t.Helper()
	f := bytes.Clone(frame)
	copy(f[ipHeader:], []byte{0, serverPort, 0, clientPort}) // the sums stay the same
	return f
}

func TestFrame(t *testing.T) {
	frame := appendFrame(nil, netip.IPv4Unspecified(), []byte("abc"))
	want := unhex(t, "45c0001f 00000000 4011 7a0f 00000000 ffffffff 0044 0043 000b 3aef 616263")
	if !bytes.Equal(frame, want) {
		t.Errorf("got % x", frame)
	}
	back := turn(t, frame)
	padded := append(bytes.Clone(back), make([]byte, 20)...)
	for _, f := range [][]byte{back, padded} {
		if m, err := message(f, true); err != nil || string(m) != "abc" {
			t.Errorf("%q, %v", m, err)
		}
	}
	for at, err := range map[int]string{
		0:  "31 bytes are no IPv4 packet",
		2:  "IPv4 packet with a header of 20 bytes and 65311 in all, in a frame of 31",
		8:  "IPv4 packet with a wrong check sum",
		7:  "IPv4 packet of protocol 17, or a fragment, where a UDP datagram is wanted",
		9:  "IPv4 packet of protocol 238, or a fragment, where a UDP datagram is wanted",
		21: "UDP datagram from port 188 to 68, not from 67 to 68",
		25: "UDP datagram of 244 bytes in 11",
		30: "UDP datagram with a wrong check sum",
	} {
		bad := bytes.Clone(back)
		bad[at] ^= 0xff
		if _, got := message(bad, true); got == nil || got.Error() != err {
			t.Errorf("byte %d: %v, want %s", at, got, err)
		}
	}
	back[30] ^= 0xff
	if m, err := message(back, false); err != nil || len(m) != 3 {
		t.Errorf("unchecked: %q, %v", m, err)
	}
}

func TestARP(t *testing.T) {
	mine, other := [6]byte(testMAC), [6]byte{2, 0, 0, 0, 0, 1}
	probe := arp{fromMAC: mine, fromIP: netip.IPv4Unspecified(), toIP: leased}
	want := unhex(t, "0001 0800 06 04 0001 525400123456 00000000 000000000000 0a000032")
	if got := probe.marshal(); !bytes.Equal(got, want) {
		t.Errorf("got % x", got)
	}
	for _, c := range []struct {
		a    arp
		want bool
	}{
		{probe, false},
		{arp{fromMAC: other, fromIP: leased, toIP: server, reply: true, toMAC: mine}, true},
		{arp{fromMAC: other, fromIP: leased, toIP: leased}, true},
		{arp{fromMAC: other, fromIP: netip.IPv4Unspecified(), toIP: leased}, true}, // somebody probes too
		{arp{fromMAC: other, fromIP: server, toIP: leased}, false},                 // somebody asks
	} {
		got, err := parseARP(append(c.a.marshal(), 0, 0))
		if err != nil || *got != c.a {
			t.Fatalf("%+v, %v", got, err)
		}
		if got.claims(leased, mine) != c.want {
			t.Errorf("%+v claims: %v", c.a, !c.want)
		}
	}
	want[7] = 8
	for _, bad := range [][]byte{nil, want, want[:27]} {
		if _, err := parseARP(bad); err == nil || !strings.HasSuffix(err.Error(), "bytes are no ARP packet of Ethernet and IPv4") {
			t.Errorf("% x: %v", bad, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(unhex(f, golden))
	f.Add(reply(&packet{}, ack, 3600).marshal())
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parse(data)
		if err != nil {
			return
		}
		l, err := newLease(p, time.Unix(0, 0))
		if err != nil {
			return
		}
		if !l.Expires.IsZero() && (l.RenewAt.Before(l.Acquired.Add(minLease/2)) || l.RebindAt.Before(l.RenewAt) || l.Expires.Before(l.RebindAt)) {
			t.Errorf("times %+v", l)
		}
		if !l.Address.IsValid() || l.Address.Bits() == 0 || l.MTU != 0 && l.MTU < minMTU || len(l.Warnings) > maxWarnings {
			t.Errorf("%+v", l)
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add(turn(f, appendFrame(nil, leased, []byte("abc"))), true)
	f.Fuzz(func(t *testing.T, data []byte, checked bool) {
		if m, err := message(data, checked); err == nil && len(m) > len(data)-ipHeader-udpHeader {
			t.Errorf("%d bytes in %d", len(m), len(data))
		}
		_, _ = parseARP(data)
	})
}
