# What a run of fsck.atomic4 says, less what differs from run to run and from machine to machine.
/^e2fsck [0-9]/d
s|[^ ":]*vol\.img|IMAGE|g
s|[^ ]*/e2fsck:|e2fsck:|
# Log ids; generations, alone and in the volume attribute.
s/\b[0-9a-f]\{32\}\b/LOG-ID/g
s/generation [1-9][0-9]* now, [0-9]* then/generation N now, N then/g
s/\blog=\([0-9]*\):[0-9]*:/log=\1:N:/g
# Dates: e2fsck's, and ISO ones.
s/\b[A-Z][a-z][a-z] [A-Z][a-z][a-z] [ 0-9][0-9] [0-9:]\{8\} [0-9]\{4\}/DATE/g
s/\b[0-9]\{4\}-[0-9][0-9]-[0-9][0-9][ T][0-9:]\{8\}\(\.[0-9]*\)\?Z\?/DATE/g
