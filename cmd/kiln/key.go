package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnhq/kiln/kernel/sign"
)

func newKey(*globals) *cobra.Command {
	c := &cobra.Command{Use: "key", Short: "Make keys that sign kernel modules"}
	c.AddCommand(newKeyGenerate())
	return c
}

func newKeyGenerate() *cobra.Command {
	var name, output string
	c := &cobra.Command{
		Use:   "generate",
		Short: "Make a key to sign kernel modules with, and its certificate",
		Long: `Make an RSA key of 4096 bits to sign kernel modules with, and a certificate that
machines enrol. The output is a new directory:

  ` + sign.KeyFile + `   the private key, which nobody else must have
  ` + sign.CertFile + `  the certificate
  ` + sign.CertDERFile + `  the same, as firmware and mokutil want it

No two keys are the same: this is the one command of kiln whose result differs
each time.`,
		Example: `  kiln key generate --name "Example Inc. kernel modules" --output module-key`,
		Args:    args(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			// Making a key takes seconds: what will not work is said before.
			if _, err := os.Lstat(output); err == nil {
				return outputError{fmt.Errorf("%s: %w; keys are not overwritten, want the name of a new directory", filepath.Clean(output), fs.ErrExist)}
			}
			// The kernel does not look at the dates, and its own build asks for as
			// many days.
			s, err := sign.Generate(name, 4096, time.Now(), 36500*24*time.Hour)
			if err != nil {
				return usageError{err}
			}
			if err := s.Save(output); err != nil {
				return writing(output, err)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), output)
			return err
		},
	}
	c.Flags().StringVar(&name, "name", "", "whose key it is: the common name in the certificate, up to 64 bytes")
	c.Flags().StringVarP(&output, "output", "o", "", "directory to make")
	for _, f := range []string{"name", "output"} {
		c.MarkFlagRequired(f)
	}
	return c
}
