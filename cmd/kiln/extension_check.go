package main

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/imager"
	"github.com/kilnhq/kiln/imager/base"
	"github.com/kilnhq/kiln/kernel/gate"
	"github.com/kilnhq/kiln/kernel/sign"
	"github.com/kilnhq/kiln/profiles"
)

func newExtensionCheck() *cobra.Command {
	var f struct {
		extensionFlags
		base, arch, profile string
		kernelArgs, certs   []string
		strict, asJSON      bool
	}
	c := &cobra.Command{
		Use:   "check EXTENSION…",
		Short: "Check whether system extensions work with a base",
		Long: `Check system extensions, lowest layer first, as composing an image does: whether
they can be stacked on the base, and whether the base's kernel will load their
modules. With a profile, the drivers that its platform needs are checked too.

Each finding has a code that does not change from version to version, the file,
what was found, what was wanted and what to do. Errors make the exit code 4.`,
		Example: `  kiln extension check zfs.oci --base base
  kiln extension check spl.oci zfs.oci --base base --profile metal --strict
  kiln extension check --json zfs.oci | jq -r '.findings[] | .code + " " + .file'`,
		Args: atLeastOne,
		RunE: func(c *cobra.Command, args []string) error {
			b, err := base.Open(f.base, f.arch)
			if err != nil {
				return err
			}
			var p *profiles.Profile
			if f.profile != "" {
				if p, err = loadProfile(f.profile, []string{"arch=" + b.Config.Arch}); err != nil {
					return err
				}
			}
			all, err := f.open(c.Context(), args, b.Config.Arch)
			if err != nil {
				return err
			}
			certs, err := loadCertificates(f.certs)
			if err != nil {
				return err
			}
			verdict, err := imager.Check(c.Context(), imager.CheckRequest{
				Base: b, Profile: p, Extensions: all, KernelArgs: f.kernelArgs, Certificates: certs,
			})
			if err != nil {
				return err
			}
			if f.asJSON {
				err = writeFindingsJSON(c.OutOrStdout(), verdict.Findings)
			} else {
				err = writeFindings(c.OutOrStdout(), verdict.Findings)
			}
			if err != nil {
				return err
			}
			return tooMany(verdict, f.strict)
		},
	}
	c.Flags().StringVar(&f.base, "base", "base", "base the extensions are for")
	c.Flags().StringVar(&f.arch, "arch", "", "architecture, if the base is for several: amd64 or arm64")
	c.Flags().StringVar(&f.profile, "profile", "", "also check for the drivers that this profile's platform needs")
	f.add(c.Flags())
	c.Flags().StringArrayVar(&f.kernelArgs, "kernel-arg", nil, "kernel argument that the image will have, such as module.sig_enforce=1 (repeatable)")
	c.Flags().StringArrayVar(&f.certs, "module-certificate", nil, moduleCertificateUsage)
	c.Flags().BoolVar(&f.strict, "strict", false, "treat warnings as errors")
	c.Flags().BoolVar(&f.asJSON, "json", false, "print JSON")
	return c
}

const moduleCertificateUsage = "certificate (PEM or DER) whose signatures of modules the machine's firmware makes the kernel trust (repeatable)"

func loadCertificates(files []string) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for _, file := range files {
		c, err := sign.LoadCertificate(file)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// tooMany is the error of a check whose findings are printed already.
func tooMany(v *imager.Verdict, strict bool) error {
	if v.Err(strict) == nil {
		return nil
	}
	errors, warnings := gate.Count(v.Findings, gate.Error), gate.Count(v.Findings, gate.Warning)
	return fmt.Errorf("%w: %d errors, %d warnings", imager.ErrRefused, errors, warnings)
}

// writeFindings writes a finding in four lines: a table would be too wide.
func writeFindings(w io.Writer, list []gate.Finding) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "no findings")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range list {
		where := f.File
		if f.Origin != "" {
			where = f.Origin + ": " + f.File
		}
		fmt.Fprintf(tw, "%s[%s]: %s\n  found:\t%s\n  wanted:\t%s\n  to do:\t%s\n", f.Severity, f.Code, where, f.Found, f.Wanted, f.Fix)
	}
	return tw.Flush()
}

func writeFindingsJSON(w io.Writer, list []gate.Finding) error {
	if list == nil {
		list = []gate.Finding{}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(struct {
		Errors   int            `json:"errors"`
		Warnings int            `json:"warnings"`
		Findings []gate.Finding `json:"findings"`
	}{gate.Count(list, gate.Error), gate.Count(list, gate.Warning), list})
}
