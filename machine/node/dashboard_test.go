//go:build linux

package node

import (
	"net/netip"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/kilnhq/kiln/machine/control"
	"github.com/kilnhq/kiln/machine/dashboard"
	"github.com/kilnhq/kiln/machine/network"
)

// The log on the dashboard has the console's lines, as they are read best, and what
// the kernel warns of.
func TestPanelLog(t *testing.T) {
	p := &panel{}
	const user = 1
	for _, c := range []struct {
		line control.DmesgLine
		want *dashboard.Entry // nil: not shown
	}{
		{control.DmesgLine{Facility: user, Level: 7, Message: "kiln: stage=disk t=75.488 name=vda guid=1", Microseconds: 75e6}, &dashboard.Entry{Time: 75 * time.Second, Text: "stage=disk name=vda guid=1", Level: 7}},
		{control.DmesgLine{Facility: user, Level: 7, Message: "kiln: ready version=1 t=2.5"}, &dashboard.Entry{Text: "ready version=1", Level: 7}},
		{control.DmesgLine{Facility: user, Level: 7, Message: `kiln: note text="time: \"a\" t=x" t=2.5`}, &dashboard.Entry{Text: `time: "a" t=x`, Level: 7}},
		{control.DmesgLine{Facility: user, Level: 7, Message: `kiln: note text="cut of…`}, &dashboard.Entry{Text: `note text="cut of…`, Level: 7}},
		{control.DmesgLine{Facility: user, Level: 7, Message: `kiln: failed stage=state error="no" t=1.0`}, &dashboard.Entry{Text: `failed stage=state error="no"`, Level: 3}},
		{control.DmesgLine{Facility: user, Level: 3, Message: "somebody: else"}, nil},
		{control.DmesgLine{Level: 6, Message: "virtio: all is well"}, nil},
		{control.DmesgLine{Level: 4, Message: "kiln: pretended"}, &dashboard.Entry{Text: "kiln: pretended", Level: 4}},
	} {
		p.log, p.scrolled = nil, false
		shown := p.note(c.line)
		if shown != (c.want != nil) || shown && !reflect.DeepEqual(p.log, []dashboard.Entry{*c.want}) {
			t.Errorf("%+v: %v, %+v; want %+v", c.line, shown, p.log, c.want)
		}
		if p.scrolled != (c.line.Facility == 0) {
			t.Errorf("%+v: scrolled is %v", c.line, p.scrolled)
		}
	}
	for i := range 3 * shownLog {
		p.note(control.DmesgLine{Level: 1, Message: strconv.Itoa(i)})
	}
	if len(p.log) != shownLog || p.log[shownLog-1].Text != strconv.Itoa(3*shownLog-1) {
		t.Errorf("%d entries, the last is %+v", len(p.log), p.log[len(p.log)-1])
	}
}

// Links that are not the node's, and addresses that cannot be used, are not shown.
func TestPanelAddresses(t *testing.T) {
	global, local, double := netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("fe80::1/64"), netip.MustParsePrefix("192.0.2.9/24")
	var s dashboard.State
	addresses(&s, &network.Status{
		Links: []network.LinkStatus{
			{Name: "cni0", Carrier: true, Addresses: []network.Address{{Prefix: global}}},
			{Name: "eth0", Managed: true, Carrier: true, Addresses: []network.Address{{Prefix: global}, {Prefix: local}, {Prefix: double, Duplicate: true}}},
		},
		Defaults: []network.DefaultRoute{{Via: netip.MustParseAddr("fe80::2%eth0"), Link: "eth0"}, {Via: netip.MustParseAddr("fe80::2%eth0"), Link: "eth0", Metric: 9}, {Link: "ppp0"}},
	})
	want := dashboard.State{Links: []dashboard.Link{{Name: "eth0", Carrier: true, Addresses: []netip.Prefix{global}}}, Gateways: []string{"fe80::2", "ppp0"}}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("%+v\nwant %+v", s, want)
	}
}

// The use of the processors is that since it was asked for last.
func TestPanelUsage(t *testing.T) {
	p := &panel{}
	if u := p.usage(); u >= 0 {
		t.Errorf("at first %v, want it unknown", u)
	}
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
	}
	if u := p.usage(); u <= 0 || u > 1 {
		t.Errorf("after some work %v, want more than 0", u)
	}
}
