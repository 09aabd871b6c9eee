package gate

import (
	"errors"
	"strings"

	"github.com/kilnhq/kiln/kernel/kconfig"
	"github.com/kilnhq/kiln/kernel/sign"
)

// RequiredBy returns why a kernel with this configuration and command line
// refuses modules that are not signed by a key it trusts, or "". With UEFI
// Secure Boot a kernel may do so without being told.
func RequiredBy(config kconfig.Config, args []string) string {
	if config.Yes("MODULE_SIG_FORCE") {
		return "CONFIG_MODULE_SIG_FORCE"
	}
	why := ""
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		switch strings.ReplaceAll(key, "-", "_") {
		case "module.sig_enforce":
			if value == "" || strings.ContainsAny(value[:1], "1yYtT") || value == "on" {
				why = a
			}
		case "lockdown":
			if (value == "integrity" || value == "confidentiality") && config.Yes("SECURITY_LOCKDOWN_LSM") {
				why = a
			}
		}
	}
	return why
}

// Signed is the signature of a module file.
type Signed struct {
	By  string // who signed
	Err error  // why the kernel would not verify it, as package sign says; nil if it would
}

// signature says what the kernel will make of the module's signature. A wrong
// one is refused always; a missing one, or one by an unknown key, only if
// signatures are required: otherwise the kernel is tainted.
func (c *checker) signature(m *placed) {
	if !c.system.Config.Yes("MODULE_SIG") {
		return
	}
	required := c.system.SignatureRequired
	add, wanted := c.info, "the kernel will load it, and call itself tainted"
	if required != "" {
		add, wanted = c.bad, "the kernel refuses it: "+required
	}
	const fix = "sign it with 'kiln extension build --sign-key', by a key the kernel trusts"
	if m.Signature == nil {
		add(m, SignatureMissing, "not signed", wanted, fix)
		return
	}
	switch err := m.Signature.Err; {
	case err == nil:
	case errors.Is(err, sign.ErrSigner):
		add(m, SignatureUnknown, "signed by "+m.Signature.By+", whom the kernel does not know", wanted,
			"enrol the certificate of that key in the machines' firmware and give it with --module-certificate, or "+fix)
	default:
		c.bad(m, SignatureBad, "signed by "+m.Signature.By+": "+err.Error(), "the kernel refuses it",
			"sign it again: nothing may change it afterwards, not even strip")
	}
}
