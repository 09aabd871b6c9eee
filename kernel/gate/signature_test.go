package gate_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/kilnhq/kiln/kernel/gate"
	"github.com/kilnhq/kiln/kernel/kconfig"
	"github.com/kilnhq/kiln/kernel/module/moduletest"
	"github.com/kilnhq/kiln/kernel/sign"
)

func TestSignatures(t *testing.T) {
	from := time.Unix(1e9, 0)
	mine, err := sign.Generate("mine", 2048, from, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	other, err := sign.Generate("other", 2048, from, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	plain := moduletest.ELF(goodModule("zfs"))
	signed := func(s *sign.Signer) []byte {
		data, err := s.Sign(plain)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	changed := signed(mine)
	changed[len(plain)-1] ^= 1
	const file = "extension x: " + modules + "zfs.ko: "
	for _, tc := range []struct {
		name     string
		data     []byte
		required string
		config   string
		want     []string
	}{
		{"unsigned", plain, "", "y", []string{"signature-missing info " + file + "not signed, the kernel will load it, and call itself tainted; sign it with 'kiln extension build --sign-key'"}},
		{"unsigned, required", plain, "module.sig_enforce=1", "y", []string{"signature-missing error " + file + "not signed, the kernel refuses it: module.sig_enforce=1; sign it"}},
		{"unsigned, not supported", plain, "", "n", nil},
		{"signed", signed(mine), "module.sig_enforce=1", "y", nil},
		{"unknown", signed(other), "", "y", []string{"signature-unknown info " + file + "signed by other"}},
		{"unknown, required", signed(other), "lockdown=integrity", "y", []string{"signature-unknown error " + file + "signed by other"}},
		{"changed", changed, "", "y", []string{"signature-bad error " + file + "signed by mine"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSystem(t)
			s.Config["MODULE_SIG"], s.SignatureRequired = tc.config, tc.required
			m, err := gate.Read(modules+"zfs.ko", tc.data, []*x509.Certificate{mine.Certificate})
			if err != nil {
				t.Fatal(err)
			}
			expect(t, gate.Check(s, []gate.Layer{{Name: "x", Modules: []gate.Module{m}}}), tc.want)
		})
	}
}

func TestRequiredBy(t *testing.T) {
	lockdown := kconfig.Config{"SECURITY_LOCKDOWN_LSM": "y"}
	for _, tc := range []struct {
		config kconfig.Config
		args   []string
		want   string
	}{
		{nil, []string{"quiet"}, ""},
		{kconfig.Config{"MODULE_SIG_FORCE": "y"}, nil, "CONFIG_MODULE_SIG_FORCE"},
		{nil, []string{"module.sig_enforce"}, "module.sig_enforce"},
		{nil, []string{"module.sig_enforce=1"}, "module.sig_enforce=1"},
		{nil, []string{"module.sig_enforce=0"}, ""},
		{lockdown, []string{"lockdown=integrity"}, "lockdown=integrity"},
		{lockdown, []string{"lockdown=none"}, ""},
		{nil, []string{"lockdown=integrity"}, ""},
	} {
		if got := gate.RequiredBy(tc.config, tc.args); got != tc.want {
			t.Errorf("%v %v: %q, want %q", tc.config, tc.args, got, tc.want)
		}
	}
}
